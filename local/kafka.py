"""Apache Kafka in KRaft mode: one process that is broker and controller."""

from __future__ import annotations

import shutil
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from local.ports import HOST, accepts, free_port
from local.process import Process, run
from local.tools import fetch_jars, require_java

_SERVER = Path(__file__).with_name("kafka-server")
#: Names Kafka's jars.
POM = _SERVER / "pom.xml"
_CLUSTER_ID = "ZGItY2FjaGUtc3luYy1kYg"  # 16 bytes in base64, as Kafka wants it


class Kafka(Process):
    """An Apache Kafka of its own.

    Arguments:
        folder: where its log and its data are; later starts find them again
        jars: where Kafka's jars are kept; Maven fills it once
        name: what messages call it
        port: where clients connect; a free port when None
        controller_port: where it talks to itself; a free port when None
        advertised_port: where it tells its clients that it listens; `port` when None

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
        """The address that Kafka clients take."""
        return f"{HOST}:{self._advertised_port}"

    def erase(self) -> None:
        """Forget all topics and groups; to be called before the start."""
        shutil.rmtree(self._data, ignore_errors=True)

    def prepare(self) -> None:
        """Fetch the jars once, write the configuration, format the data folder once."""
        self._java = require_java()
        self._classes = fetch_jars(self._jars, POM)
        lines = (f"{name}={value}\n" for name, value in self.properties().items())
        self._properties.write_text("".join(lines))
        if not (self._data / "meta.properties").exists():
            self._format()

    def command(self) -> list[str]:
        """The JVM with Kafka's main class."""
        return [
            *self._jvm(),
            f"-Dlog4j2.configurationFile={_SERVER / 'log4j2.properties'}",
            "kafka.Kafka",
            str(self._properties),
        ]

    def ready(self) -> bool:
        """Whether the broker tells a client about itself."""
        if not accepts(self.port):
            return False
        client = AdminClient({"bootstrap.servers": f"{HOST}:{self.port}", "log_level": 0})
        try:
            return bool(client.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    def _jvm(self) -> list[str]:
        # The quick compiler alone: the other one takes half the time of a start, and on a few shared cores it
        # does not win that back.
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
            # One broker can hold one copy.
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # Fewer of what is sized for a server: the first consumer waits until these are made.
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            # How long a consumer waits for others to join its group, and a restarted broker for its own
            # former self to be given up.
            "group.initial.rebalance.delay.ms": 0,
            "broker.heartbeat.interval.ms": 200,
            "broker.session.timeout.ms": 2000,
        }

    def _format(self) -> None:
        # What an interrupted formatting left would not be taken.
        self.erase()
        command = [*self._jvm(), "kafka.tools.StorageTool"]
        command += ["format", "--cluster-id", _CLUSTER_ID, "--config", str(self._properties)]
        run(command)
