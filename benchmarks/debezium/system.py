"""Debezium with a bare sink, as a system that can be measured like the project's own.

PostgreSQL has the settings of the project's local system, except for `wal_level=logical`, which Debezium
needs. Kafka and Redis are the same. Debezium runs on Kafka Connect in standalone mode, the smallest form that
writes to Kafka.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

import httpx

from benchmarks.target import Target
from local.kafka import Kafka
from local.ports import HOST, accepts, free_port
from local.postgres import Postgres
from local.private_file import write_private
from local.process import Process
from local.redis import Redis
from local.settings import REPOSITORY
from local.tools import fetch_jars, require_java

if TYPE_CHECKING:
    from collections.abc import Mapping

_POM: Final = Path(__file__).with_name("pom.xml")
_LOGGING: Final = REPOSITORY / "local" / "kafka-server" / "log4j2.properties"
_NAME: Final = "debezium"
_TOPIC: Final = "bare.public.student"
#: As many as `cachesync create-topics` creates by default.
_PARTITIONS: Final = 1
#: The settings that its documentation names for throughput, on top of its defaults.
TUNED: Final = {
    "max.batch.size": "20480",
    "max.queue.size": "81920",
    "producer.override.batch.size": "1000000",
    "producer.override.linger.ms": "10",
}


class LogicalPostgres(Postgres):
    """A PostgreSQL server whose log can be decoded."""

    def command(self) -> list[str]:
        """Return the `postgres` command line."""
        return [*super().command(), "-c", "wal_level=logical"]


class Connect(Process):
    """Kafka Connect in standalone mode with Debezium's connector for PostgreSQL.

    Args:
        folder: directory of its log and its files.
        dsn: the database, as its superuser.
        bootstrap_servers: the Kafka brokers.
        jars: directory for the jars, which Maven downloads once.
        settings: settings of the connector that replace its defaults.
    """

    start_seconds = 180.0

    def __init__(
        self, folder: Path, *, dsn: str, bootstrap_servers: str, jars: Path, settings: Mapping[str, str]
    ) -> None:
        self._port = free_port()
        self._jars = jars
        self._worker = folder / "connect.properties"
        self._connector = folder / "connector.properties"
        self._bootstrap_servers = bootstrap_servers
        self._dsn = urlsplit(dsn)
        self._settings = settings
        self._java = "java"
        self._classes = jars
        super().__init__(_NAME, folder, {_NAME: self._port})

    def prepare(self) -> None:
        """Write the configuration; on the first start, download the jars."""
        self._java = require_java()
        self._classes = fetch_jars(self._jars, _POM)
        (self.folder / "connect.offsets").unlink(missing_ok=True)
        for file, properties in (
            (self._worker, self._worker_properties()),
            (self._connector, self._properties()),
        ):
            write_private(file, "".join(f"{name}={value}\n" for name, value in properties.items()))

    def command(self) -> list[str]:
        """Return the Java command line, with the compilers that suit a program under load."""
        return [
            *(self._java, "-Xmx1g", "-cp", str(self._classes / "*")),
            f"-Dlog4j2.configurationFile={_LOGGING}",
            "org.apache.kafka.connect.cli.ConnectStandalone",
            *(str(self._worker), str(self._connector)),
        ]

    def ready(self) -> bool:
        """Return whether the connector's task is running."""
        if not accepts(self._port):
            return False
        try:
            status = httpx.get(f"http://{HOST}:{self._port}/connectors/{_NAME}/status").json()
        except (httpx.TransportError, ValueError):
            return False
        return [task["state"] for task in status.get("tasks", [])] == ["RUNNING"]

    def _worker_properties(self) -> dict[str, object]:
        return {
            "bootstrap.servers": self._bootstrap_servers,
            "listeners": f"HTTP://{HOST}:{self._port}",
            "key.converter": "org.apache.kafka.connect.storage.StringConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter.schemas.enable": "false",
            "offset.storage.file.filename": self.folder / "connect.offsets",
            # It reads lists of the classes instead of looking at every class of every jar.
            "plugin.discovery": "service_load",
            "connector.client.config.override.policy": "All",
        }

    def _properties(self) -> dict[str, object]:
        return {
            "name": _NAME,
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "tasks.max": 1,
            "database.hostname": self._dsn.hostname,
            "database.port": self._dsn.port,
            "database.user": self._dsn.username,
            "database.password": self._dsn.password,
            "database.dbname": self._dsn.path.removeprefix("/"),
            "plugin.name": "pgoutput",
            "slot.name": _NAME,
            "publication.autocreate.mode": "filtered",
            "table.include.list": "public.student",
            "topic.prefix": "bare",
            "snapshot.mode": "no_data",
            "topic.creation.default.partitions": _PARTITIONS,
            "topic.creation.default.replication.factor": 1,
            # The key is the text of the column and the value the row as JSON, so the sink decodes nothing.
            "transforms": "key,row",
            "transforms.key.type": "org.apache.kafka.connect.transforms.ExtractField$Key",
            "transforms.key.field": "id",
            "transforms.row.type": "io.debezium.transforms.ExtractNewRecordState",
            # By default it looks for new records twice a second only.
            "poll.interval.ms": 1,
            **self._settings,
        }


class Sink(Process):
    """The bare sink of one cache."""

    def __init__(self, folder: Path, service: str, bootstrap_servers: str, port: int) -> None:
        self._arguments = [bootstrap_servers, _TOPIC, str(port), service]
        super().__init__(f"sink-{service}", folder, {})

    def command(self) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", "benchmarks.debezium.sink", *self._arguments]

    def working_folder(self) -> Path:
        """Return the repository, from which `benchmarks` can be imported."""
        return REPOSITORY

    def environment(self) -> dict[str, str]:
        """Return the caller's environment."""
        return dict(os.environ)

    def ready(self) -> bool:
        """Return whether it runs; that it follows the topic shows only in the caches."""
        return self.running


class Debezium:
    """PostgreSQL, Kafka, Kafka Connect, and a Redis with a sink for each of two caches.

    Args:
        folder: the state directory.
    """

    def __init__(self, folder: Path) -> None:
        self.postgres = LogicalPostgres(folder, name="debezium-postgres")
        self._folder = folder
        self._kafka = Kafka(folder, jars=folder.parent / "kafka", name="debezium-kafka")
        self._caches = {service: Redis(folder, name=f"debezium-redis-{service}") for service in ("sa", "sb")}
        self._sinks = [
            Sink(folder, service, self._kafka.bootstrap_servers, cache.port)
            for service, cache in self._caches.items()
        ]
        self._connect: Connect | None = None
        self._stack = ExitStack()

    @property
    def target(self) -> Target:
        """The system for the measurements."""
        connect = [] if self._connect is None else [self._connect]
        return Target(
            dsn=self.postgres.dsn,
            caches={service: cache.url for service, cache in self._caches.items()},
            processes=[self.postgres, self._kafka, *self._caches.values(), *connect, *self._sinks],
            captured=False,
        )

    def connect(self, settings: Mapping[str, str]) -> None:
        """Start Debezium with these settings, or restart it."""
        if self._connect is not None:
            self._connect.stop()
            self.postgres.sql(f"SELECT pg_drop_replication_slot('{_NAME}')")
        self._connect = self._stack.enter_context(
            Connect(
                self._folder,
                dsn=self.postgres.dsn,
                bootstrap_servers=self._kafka.bootstrap_servers,
                jars=self._folder.parent / "debezium",
                settings=settings,
            )
        )

    def __enter__(self) -> Self:
        # Nothing is left of an earlier run, such as a slot that holds the log back.
        self._kafka.erase()
        for server in (self.postgres, self._kafka, *self._caches.values()):
            self._stack.enter_context(server)
        self.postgres.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        self.postgres.drop_databases()
        self.postgres.sql((REPOSITORY / "local" / "sample.sql").read_text(encoding="utf-8"))
        for sink in self._sinks:
            self._stack.enter_context(sink)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
