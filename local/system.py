"""The whole system, started and stopped as one unit."""

from __future__ import annotations

import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

from local.airflow import Airflow, connections
from local.command import ENTITIES, cachesync
from local.kafka import Kafka
from local.ports import require_free
from local.postgres import Postgres, address, create_role, kept_password, run_sql
from local.process import Process, killed_unless_started, stop_all
from local.redis import Redis
from local.service import Credentials, Service, credentials
from local.settings import REPOSITORY, SERVICES
from local.state import claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from local.process import Part
    from local.settings import Settings

_WORKER = "worker"
_SAMPLE = REPOSITORY / "local" / "sample.sql"


class System:
    """PostgreSQL, one Redis per service, Kafka, Airflow, and the services sa and sb.

    Further services of the settings get everything but a process.

    If the settings name an existing server, it is used instead of starting one.

    Args:
        settings: the settings.
        console: receives a line for each component that has started.
        link: redirects connections between components. It is called with the name of the client, the name of
            the server and the server's port, and returns the port to connect to instead. The names are the
            keys of `parts`; `clients` stands for all Kafka clients.
    """

    def __init__(
        self, settings: Settings, console: Console, link: Callable[[str, str, int], int] | None = None
    ) -> None:
        self.folder = settings.state / "run"
        self._console = console
        self._link = link
        self._claim = ExitStack()
        self.postgres: Postgres | None = None
        if settings.postgres_dsn is None:
            self.postgres = Postgres(self.folder, port=settings.postgres_port)
            self.dsn = self.postgres.dsn
        else:
            self.dsn = settings.postgres_dsn
        self.redis: dict[str, Redis] = {}
        self.redis_urls: dict[str, str] = {}
        others = [service for service in settings.caches if service not in SERVICES]
        for service in settings.caches:
            url: str | None = getattr(settings, f"redis_{service}_url", None)
            if url is None:
                port: int = (
                    settings.first_port + others.index(service)
                    if service in others
                    else getattr(settings, f"redis_{service}_port")
                )
                server = self.redis[service] = Redis(self.folder, name=f"redis-{service}", port=port)
                url = server.url
            self.redis_urls[service] = url
        self.kafka: Kafka | None = None
        if settings.kafka_bootstrap is None:
            self.kafka = Kafka(
                self.folder,
                jars=settings.state / "kafka",
                port=settings.kafka_port,
                controller_port=settings.kafka_controller_port,
                # Clients connect to the address that the broker advertises.
                advertised_port=None if link is None else link("clients", "kafka", settings.kafka_port),
            )
            self.bootstrap_servers = self.kafka.bootstrap_servers
        else:
            self.bootstrap_servers = settings.kafka_bootstrap
        self._worker_password = kept_password(self.folder / "worker-password")
        self._others = {
            service: Credentials(service, kept_password(self.folder / f"{service}-password"))
            for service in others
        }
        #: The database, with the login of Airflow's background work.
        self.worker_dsn = self._address_for(Credentials(_WORKER, self._worker_password))
        self.airflow = Airflow(
            self.folder / "airflow",
            admin_dsn=self.dsn,
            environment={
                **connections(
                    {
                        service: self._linked("airflow", self.redis.get(service), url)
                        for service, url in self.redis_urls.items()
                    },
                    self.bootstrap_servers,
                    self._linked("airflow", self.postgres, self.worker_dsn),
                ),
                "CACHESYNC_CACHES": ",".join(settings.caches),
                "CACHESYNC_ENTITIES": ENTITIES,
                # Few and quick retries, so that a dead letter is parked while someone is watching.
                "CACHESYNC_DEAD_LETTER_ATTEMPTS": "3",
                "CACHESYNC_DEAD_LETTER_BACKOFF_SECONDS": "1",
            },
            port=settings.airflow_port,
            metrics_port=settings.triggerer_metrics_port,
        )
        self.services = {
            service: Service(
                self.folder,
                service,
                dsn=self._linked(service, self.postgres, self.dsn),
                redis_url=self._linked(service, self.redis.get(service), self.redis_urls[service]),
                bootstrap_servers=self.bootstrap_servers,
                port=getattr(settings, f"{service}_port"),
                metrics_port=getattr(settings, f"{service}_metrics_port"),
            )
            for service in SERVICES
        }
        servers = [self.postgres, *self.redis.values(), self.kafka]
        #: The components that are started, by name.
        self.parts: dict[str, Part] = {server.name: server for server in servers if server is not None}
        self.parts |= {"airflow": self.airflow, **self.services}
        #: The address of every component, including servers that the user provides.
        self.addresses = {
            "postgres": self.dsn,
            **{f"redis-{service}": url for service, url in self.redis_urls.items()},
            "kafka": self.bootstrap_servers,
            "airflow": f"{self.airflow.url} as {self.airflow.username}, password {self.airflow.password}",
            **{service.name: service.url for service in self.services.values()},
            **{service: self._address_for(who) for service, who in self._others.items()},
        }

    @property
    def processes(self) -> list[Process]:
        """The processes of all components."""
        others = [part for part in self.parts.values() if isinstance(part, Process)]
        return [*others, *self.airflow.components]

    def start(self) -> Self:
        """Start everything, each component as soon as its dependencies are ready.

        Raises:
            PortTakenError: ports are in use; nothing was started.
            StateInUseError: another run uses the same state directory; nothing was started.
        """
        self._claim.enter_context(claim(self.folder))
        try:
            require_free({name: port for part in self.parts.values() for name, port in part.ports.items()})
            self._run_steps()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything. The servers are stopped last, so that their clients can shut down cleanly."""
        users: list[Part] = [self.airflow, *self.services.values()]
        stop_all(users)
        stop_all([part for part in self.parts.values() if part not in users])
        self._claim.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _address_for(self, who: Credentials) -> str:
        """Return the address of the database with another login."""
        database = unquote(urlsplit(self.dsn).path.removeprefix("/"))
        return address(self.dsn, database=database, user=who.username, password=who.password)

    def _linked(self, user: str, server: Postgres | Redis | None, address: str) -> str:
        """Return the address at which this client connects to the server."""
        if self._link is None or server is None:
            return address
        return address.replace(f":{server.port}/", f":{self._link(user, server.name, server.port)}/")

    def _run_steps(self) -> None:
        work: dict[str, Callable[[], object]] = {name: part.start for name, part in self.parts.items()}
        work |= {"tables": self._make_tables, "topics": self._make_topics}
        needs = {"tables": {"postgres"}, "topics": {"kafka"}, "airflow": {"postgres"}}
        needs |= {service: {"tables", "topics", f"redis-{service}"} for service in SERVICES}
        # A server that the user provides is already running.
        steps = TopologicalSorter({name: needs.get(name, set()) & work.keys() for name in work})
        steps.prepare()
        running: dict[Future[float], str] = {}
        with ThreadPoolExecutor(len(work)) as pool, killed_unless_started(self.parts.values(), running):
            while steps.is_active():
                running |= {pool.submit(_timed, work[name]): name for name in steps.get_ready()}
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._print_start(running[future], future.result())
                    steps.done(running.pop(future))

    def _print_start(self, name: str, seconds: float) -> None:
        line = f"{name:<10}{seconds:6.1f} s  {self.addresses.get(name, '')}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _make_tables(self) -> None:
        """Install the database objects, and create the logins of the services and the background work."""
        # A database that the user provides has its own tables.
        if self.postgres is not None:
            run_sql(self.dsn, _SAMPLE.read_text())
        cachesync("install", CACHESYNC_DSN=self.dsn)
        for who in (*map(credentials, SERVICES), *self._others.values()):
            create_role(self.dsn, who.username, who.password)
            run_sql(self.dsn, 'GRANT cachesync_service TO :"name"', name=who.username)
        create_role(self.dsn, _WORKER, self._worker_password)
        run_sql(self.dsn, 'GRANT cachesync_worker TO :"name"', name=_WORKER)

    def _make_topics(self) -> None:
        consumers = os.environ.get("CACHESYNC_CONSUMERS_PER_CACHE", "1")
        cachesync("create-topics", "--partitions", consumers, KAFKA_BOOTSTRAP_SERVERS=self.bootstrap_servers)

    @property
    def triggerer_log(self) -> str:
        """The path of the Airflow triggerer's log."""
        return str(self.folder / "airflow" / "airflow-triggerer.log")

    def sql(self, statement: str, **variables: str) -> str:
        """Run a statement as the administrator and return what `psql` prints; see `run_sql`."""
        return run_sql(self.dsn, statement, **variables)


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
