"""The way of a change from the database to the caches, without Airflow, of any size."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from benchmarks.target import Target
from local.command import ENTITIES, cachesync
from local.kafka import Kafka
from local.postgres import Postgres, create_role
from local.process import Process
from local.redis import Redis
from local.service import Service, credentials
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAMPLE: Final = REPOSITORY / "local" / "sample.sql"
#: `student` and `course`.
SAMPLE_ENTITIES: Final = 2
_TABLE: Final = "CREATE TABLE {name} (id bigint PRIMARY KEY, name text)"
_ENTITY: Final = """
[{name}]
table = "public.{name}"
key = "id"
ttl = "1h"
absent_ttl = "30s"
on_change = "refresh"
path = "/{name}"
"""


class Follower(Process):
    """The relay, or the stream of one cache.

    Args:
        folder: directory of its log.
        role: `relay`, or the service whose cache it is.
        environment: the addresses of its servers, and the entities file.
    """

    def __init__(self, folder: Path, role: str, environment: Mapping[str, str]) -> None:
        self._role = role
        self._environment = environment
        super().__init__("relay" if role == "relay" else f"stream-{role}", folder, {})

    def command(self) -> list[str]:
        """Return the command line."""
        arguments = ["relay"] if self._role == "relay" else ["stream", "--service", self._role]
        return [sys.executable, "-m", "cachesync", *arguments]

    def working_folder(self) -> Path:
        """Return the repository, from which `cachesync` can be imported."""
        return REPOSITORY

    def environment(self) -> dict[str, str]:
        """Return the caller's environment with the addresses."""
        return {**os.environ, **self._environment}

    def ready(self) -> bool:
        """Return whether it runs; that it follows shows only in the caches."""
        return self.running


class Pipeline:
    """PostgreSQL, Kafka, a relay, the service sb, and any number of caches with a stream for each.

    Args:
        folder: the state directory.
        jars: directory of Kafka's jars.
        entities: number of entities, of which only `student` has rows.
        partitions: partitions of each topic.
        caches: number of caches; the first is sb's.
    """

    def __init__(
        self,
        folder: Path,
        jars: Path,
        *,
        entities: int = SAMPLE_ENTITIES,
        partitions: int = 1,
        caches: int = 2,
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._tables = [f"table_{number}" for number in range(entities - SAMPLE_ENTITIES)]
        self._entities = folder / "entities.toml"
        self._partitions = partitions
        self._postgres = Postgres(folder)
        self._kafka = Kafka(folder, jars=jars)
        names = ["sb", "sa", *(f"s{number}" for number in range(2, caches))][:caches]
        self._caches = {name: Redis(folder, name=f"redis-{name}") for name in names}
        urls = {name: cache.url for name, cache in self._caches.items()}
        environment = {
            "CACHESYNC_DSN": self._postgres.dsn,
            "KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            "CACHESYNC_ENTITIES": str(self._entities),
            "CACHESYNC_CHANGE_LOG_RETENTION_DAYS": "1",
        }
        self._followers = [
            Follower(folder, "relay", environment),
            *(Follower(folder, name, {**environment, "REDIS_URL": url}) for name, url in urls.items()),
        ]
        self.service = Service(
            folder,
            "sb",
            dsn=self._postgres.dsn,
            redis_url=urls["sb"],
            bootstrap_servers=self._kafka.bootstrap_servers,
            environment={"CACHESYNC_ENTITIES": str(self._entities)},
        )
        self.target = Target(
            dsn=self._postgres.dsn,
            caches=urls,
            processes=[
                *(self._postgres, self._kafka, *self._caches.values()),
                *self._followers,
                self.service,
            ],
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in (self._postgres, self._kafka, *self._caches.values()):
                stack.enter_context(server)
            self._create()
            for part in (*self._followers, self.service):
                stack.enter_context(part)
            self.target.unbounded()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _create(self) -> None:
        """Create tables, topics and the service's login."""
        self._entities.parent.mkdir(parents=True, exist_ok=True)
        sections = [Path(ENTITIES).read_text(encoding="utf-8")]
        sections += [_ENTITY.format(name=name) for name in self._tables]
        self._entities.write_text("".join(sections), encoding="utf-8")
        tables = [_TABLE.format(name=name) for name in self._tables]
        self._postgres.sql(";".join([_SAMPLE.read_text(encoding="utf-8"), *tables]))
        who = credentials("sb")
        file = {"CACHESYNC_ENTITIES": str(self._entities)}
        cachesync("install", CACHESYNC_DSN=self._postgres.dsn, **file)
        create_role(self._postgres.dsn, who.username, who.password)
        self._postgres.sql(f'GRANT cachesync_service TO "{who.username}"')
        cachesync(
            *("create-topics", "--partitions", str(self._partitions)),
            KAFKA_BOOTSTRAP_SERVERS=self._kafka.bootstrap_servers,
            **file,
        )
