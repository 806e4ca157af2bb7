"""Airflow with its four components, each a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import time
from base64 import urlsafe_b64encode
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx

from local.ports import HOST, accepts, free_port
from local.postgres import address, create_database, create_role, kept_password, run_sql
from local.process import Process, run, start_all, stop_all
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PROGRAM = Path(sys.executable).with_name("airflow")
_ROLE = REPOSITORY / "jenkins-job" / "airflow-role.json"
_METADATA = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
_COMMENT = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'airflow'"


class Component(Process):
    """One of Airflow's processes.

    Arguments:
        name: what messages call it
        folder: where its log is
        arguments: of the program `airflow`
        environment: Airflow's configuration
        is_ready: whether it does its work, given when it was started
        ports: where it listens

    """

    # A look at the database costs more than one at a port, and four of them start at once.
    poll_seconds = 0.5
    start_seconds = 180.0

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        arguments: list[str],
        environment: Mapping[str, str],
        is_ready: Callable[[float], bool],
        ports: Mapping[str, int],
    ) -> None:
        super().__init__(name, folder, ports)
        self._arguments = arguments
        self._environment = environment
        self._is_ready = is_ready
        self._started = 0.0

    def prepare(self) -> None:
        """Note the time: what the database tells of an earlier process does not count."""
        self._started = time.time()

    def command(self) -> list[str]:
        """`airflow` with the component's name."""
        return [str(_PROGRAM), *self._arguments]

    def environment(self) -> dict[str, str]:
        """Airflow's configuration, and what the caller's environment has besides."""
        return dict(self._environment)

    def ready(self) -> bool:
        """Whether it does its work."""
        return self._is_ready(self._started)


class Airflow:
    """Airflow with a LocalExecutor, the repository's DAGs and its plugins.

    Arguments:
        folder: its home: secrets and logs
        admin_dsn: a PostgreSQL address with the right to make a role and a database for the metadata
        environment: what DAGs and plugins need besides, such as connections
        dags: the folder of the DAGs
        port: where its API and its pages are; a free port when None

    """

    def __init__(
        self,
        folder: Path,
        *,
        admin_dsn: str,
        environment: Mapping[str, str],
        dags: Path = REPOSITORY / "dags",
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.username = "admin"
        #: The user that Jenkins comes as.
        self.jenkins_username = "jenkins"
        self._admin_dsn = admin_dsn
        self._secrets = _secrets(folder / "secrets.json")
        #: Everything that a command like `airflow dags test` needs to work on this Airflow.
        self.environment = {
            # What the caller has set for an Airflow of their own is not meant for this one.
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            **self._configuration(dags),
            **environment,
        }
        self.api_server = self._component("api-server", lambda _: self._answers())
        self.scheduler = self._component(
            "scheduler", partial(self._has_beaten, "SchedulerJob"), "--skip-serve-logs"
        )
        self.dag_processor = self._component("dag-processor", partial(self._has_beaten, "DagProcessorJob"))
        self.triggerer = self._component(
            "triggerer", partial(self._has_beaten, "TriggererJob"), "--skip-serve-logs"
        )
        self.components = (self.api_server, self.scheduler, self.dag_processor, self.triggerer)
        self.ports = self.api_server.ports

    def another_triggerer(self, capacity: int) -> Component:
        """One more triggerer, not yet started, that runs so many triggers at once."""
        return self._component(
            "triggerer",
            partial(self._has_beaten, "TriggererJob"),
            "--skip-serve-logs",
            f"--capacity={capacity}",
            suffix="-2",
        )

    @property
    def url(self) -> str:
        """Where its pages are, and its API below `/api/v2`."""
        return f"http://{HOST}:{self.port}"

    @property
    def password(self) -> str:
        """The password of `username`."""
        return self._secrets["password"]

    @property
    def jenkins_password(self) -> str:
        """The password of `jenkins_username`."""
        return kept_password(self.folder / "jenkins-password")

    def start(self) -> Self:
        """Start the components at the same time, and wait until each works."""
        self._prepare_database()
        start_all(self.components)
        return self

    def stop(self) -> None:
        """Stop the components at the same time."""
        stop_all(self.components)

    def kill(self) -> None:
        """Kill the components."""
        for component in self.components:
            component.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _component(
        self, name: str, is_ready: Callable[[float], bool], *options: str, suffix: str = ""
    ) -> Component:
        return Component(
            f"airflow-{name}{suffix}",
            self.folder,
            arguments=[name, *options],
            environment=self.environment,
            is_ready=is_ready,
            ports={"airflow": self.port} if name == "api-server" else {},
        )

    def _configuration(self, dags: Path) -> dict[str, str]:
        sections = {
            "core": {
                "auth_manager": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
                "dags_folder": str(dags),
                "plugins_folder": str(REPOSITORY / "plugins"),
                "load_examples": "False",
                "dags_are_paused_at_creation": "False",
                "executor": "LocalExecutor",
                "parallelism": "4",
                "fernet_key": self._secrets["fernet_key"],
                # Tasks would look for it at port 8080, whatever the port of the API server is.
                "execution_api_server_url": f"{self.url}/execution/",
            },
            "api": {
                "host": HOST,
                "port": str(self.port),
                "base_url": self.url,
                "workers": "1",
                "secret_key": self._secrets["secret_key"],
            },
            "api_auth": {"jwt_secret": self._secrets["jwt_secret"]},
            "dag_processor": {"parsing_processes": "1", "refresh_interval": "10"},
            "logging": {
                "base_log_folder": str(self.folder / "logs"),
                "dag_processor_child_process_log_directory": str(self.folder / "logs" / "dag_processor"),
            },
            # A beat shows that a component has come up, and the end of a task is noticed at the next.
            "scheduler": {"scheduler_heartbeat_sec": "1", "job_heartbeat_sec": "1"},
            "workers": {"min_heartbeat_interval": "1"},
            # How soon another triggerer takes over what a dead one did.
            "triggerer": {"job_heartbeat_sec": "2", "triggerer_health_check_threshold": "6"},
        }
        return {
            "AIRFLOW_HOME": str(self.folder),
            _METADATA: _for_airflow(self._dsn("airflow")),
            "PYTHONPATH": str(REPOSITORY),
            **{
                f"AIRFLOW__{section}__{name}".upper(): value
                for section, options in sections.items()
                for name, value in options.items()
            },
        }

    def _prepare_database(self) -> None:
        """Make the metadata from a template that is made once, since that takes long."""
        inside = json.dumps([self._secrets, self.jenkins_password, _ROLE.read_text()])
        packages = ("apache-airflow", "apache-airflow-providers-fab")
        made_by = "-".join(
            ("airflow", hashlib.sha256(inside.encode()).hexdigest()[:8], *map(version, packages))
        )
        create_role(self._admin_dsn, "airflow", self._secrets["database"])
        known = self._sql("SELECT datname FROM pg_database").splitlines()
        if made_by not in known:
            unfinished = "airflow-unfinished"
            self._sql('DROP DATABASE IF EXISTS :"database"', database=unfinished)
            create_database(self._admin_dsn, unfinished)
            self._migrate(unfinished)
            self._sql('ALTER DATABASE :"database" IS_TEMPLATE true', database=unfinished)
            self._sql('ALTER DATABASE :"database" RENAME TO :"name"', database=unfinished, name=made_by)
        if "airflow" not in known:
            create_database(self._admin_dsn, "airflow", template=made_by)
            self._own("airflow")
        elif self._sql(_COMMENT) != made_by:
            self._migrate("airflow")
        self._sql("COMMENT ON DATABASE airflow IS :'made_by'", made_by=made_by)

    def _migrate(self, database: str) -> None:
        self._own(database)
        dsn = self._dsn(database)
        environment = self.environment | {_METADATA: _for_airflow(dsn)}
        run([str(_PROGRAM), "db", "migrate"], environment=environment)
        users = {
            self.username: {"password": self.password, "role": "Admin"},
            self.jenkins_username: {"password": self.jenkins_password, "role": "Reconciler"},
        }
        command = [sys.executable, "-m", "local.airflow_users", str(_ROLE)]
        run(command, cwd=REPOSITORY, environment=environment, standard_input=json.dumps(users))

    def _own(self, database: str) -> None:
        self._sql('ALTER DATABASE :"database" OWNER TO airflow', database=database)

    def _dsn(self, database: str) -> str:
        return address(self._admin_dsn, database=database, user="airflow", password=self._secrets["database"])

    def _sql(self, statement: str, **variables: str) -> str:
        return run_sql(self._admin_dsn, statement, **variables)

    def _answers(self) -> bool:
        try:
            return accepts(self.port) and httpx.get(f"{self.url}/api/v2/version", timeout=5).is_success
        except httpx.TransportError:
            return False

    def _has_beaten(self, job: str, since: float) -> bool:
        """Whether a component of this kind was started since then, and its loop has gone round once."""
        statement = (
            "SELECT count(*) > 0 FROM job WHERE job_type = :'job' AND latest_heartbeat > start_date"
            " AND start_date > to_timestamp(:since)"
        )
        return run_sql(self._dsn("airflow"), statement, job=job, since=str(since)) == "t"


def _secrets(file: Path) -> dict[str, str]:
    """What must not change from one start to the next, made once."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        made = {name: secrets.token_urlsafe(64) for name in ("database", "secret_key", "jwt_secret")}
        made["password"] = secrets.token_urlsafe(12)
        made["fernet_key"] = urlsafe_b64encode(secrets.token_bytes(32)).decode()
        file.touch(mode=0o600)
        file.write_text(json.dumps(made))
    known: dict[str, str] = json.loads(file.read_text())
    return known


def _for_airflow(dsn: str) -> str:
    return dsn.replace("postgresql:", "postgresql+psycopg2:", 1)


def connections(redis_urls: Mapping[str, str], bootstrap_servers: str, dsn: str) -> dict[str, str]:
    """Airflow's connections, as environment variables: each service's Redis and consumer group, the database.

    Arguments:
        redis_urls: each service's Redis
        bootstrap_servers: Kafka
        dsn: the database that the services share, as the background work's user

    """
    broker = {"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap_servers}}
    variables = {
        "AIRFLOW_CONN_POSTGRES_CACHESYNC": dsn,
        "AIRFLOW_CONN_KAFKA_CACHESYNC": json.dumps(broker),
    }
    for service, url in redis_urls.items():
        consumer = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"cachesync-{service}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 500,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 1000,
        }
        kafka = {"conn_type": "kafka", "extra": consumer}
        variables[f"AIRFLOW_CONN_REDIS_{service.upper()}"] = url
        variables[f"AIRFLOW_CONN_KAFKA_{service.upper()}"] = json.dumps(kafka)
    return variables
