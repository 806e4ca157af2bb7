"""Apache Kafka in KRaft mode, with one process as both broker and controller."""

from __future__ import annotations

import shutil
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from local.ports import HOST, accepts, free_port
from local.private_file import private_folder, write_private
from local.process import Process, run
from local.settings import Settings
from local.tools import fetch_jars, require_java

_SERVER = Path(__file__).with_name("kafka-server")
_POM = _SERVER / "pom.xml"
_CLUSTER_ID = "ZGItY2FjaGUtc3luYy1kYg"  # 16 bytes in base64, as Kafka requires


def fetch_kafka(parent: Path) -> Path:
    """Return a directory in `parent` with the jars of Kafka; Maven fills it once per version."""
    version = Settings().kafka_version
    return fetch_jars(parent, _POM, **({"kafka.version": version} if version else {}))


class Kafka(Process):
    """An Apache Kafka server.

    Args:
        folder: directory of its log and its data, which later starts reuse.
        jars: directory for Kafka's jars, which Maven downloads once.
        name: name of the process.
        port: port for clients; None picks a free one.
        controller_port: port for the broker's connection to the controller; None picks a free one.
        advertised_port: port that clients are told to connect to; None means `port`.
    """

    start_seconds = 60.0

    def __init__(
        self,
        folder: Path,
        *,
        jars: Path,
        name: str = "kafka",
        port: int | None = None,
        controller_port: int | None = None,
        advertised_port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.controller_port = controller_port or free_port()
        self._advertised_port = advertised_port or self.port
        self._jars = jars
        self._data = folder / f"{name}-data"
        self._properties = folder / f"{name}.properties"
        self._java = "java"
        self._classes = jars
        super().__init__(name, folder, {name: self.port, f"{name}-controller": self.controller_port})

    @property
    def bootstrap_servers(self) -> str:
        """The `bootstrap.servers` setting for Kafka clients."""
        return f"{HOST}:{self._advertised_port}"

    def erase(self) -> None:
        """Delete all topics and groups. Call it before `start`."""
        shutil.rmtree(self._data, ignore_errors=True)

    def prepare(self) -> None:
        """Write the configuration; on the first start, download the jars and format the data directory."""
        self._java = require_java()
        self._classes = fetch_kafka(self._jars)
        lines = (f"{name}={value}\n" for name, value in self.properties().items())
        write_private(self._properties, "".join(lines))
        if not (self._data / "meta.properties").exists():
            self._format()
        private_folder(self._data)

    def command(self) -> list[str]:
        """Return the Java command line with Kafka's main class."""
        return [
            *self._jvm(),
            f"-Dlog4j2.configurationFile={_SERVER / 'log4j2.properties'}",
            "kafka.Kafka",
            str(self._properties),
        ]

    def ready(self) -> bool:
        """Return whether the broker responds to a metadata request."""
        if not accepts(self.port):
            return False
        client = AdminClient({"bootstrap.servers": f"{HOST}:{self.port}", "log_level": 0})
        try:
            return bool(client.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    def _jvm(self) -> list[str]:
        # C1 only: C2 takes half of the startup time, and on a few shared cores it does not pay off.
        return [self._java, "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", str(self._classes / "*")]

    def properties(self) -> dict[str, object]:
        """The broker's configuration."""
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self._data,
            "auto.create.topics.enable": "false",
            # A single broker can hold only one replica.
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # Smaller than the defaults: the first consumer waits until these have been created.
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            # How long a consumer waits for others to join its group, and how long a restarted broker waits
            # until the controller gives up on its previous incarnation.
            "group.initial.rebalance.delay.ms": 0,
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 2000,
            # No records in the metadata log while nothing happens: with fewer heartbeats, they halve what an
            # idle broker takes of a core.
            "metadata.max.idle.interval.ms": 0,
        }

    def _format(self) -> None:
        # Kafka rejects a directory that an interrupted formatting left behind.
        self.erase()
        command = [*self._jvm(), "kafka.tools.StorageTool"]
        command += ["format", "--cluster-id", _CLUSTER_ID, "--config", str(self._properties)]
        run(command)
