"""Airflow, with each of its four components in a separate process."""

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

from cachesync.kafka.groups import consumer_settings, group_of
from local.ports import HOST, accepts, free_port
from local.postgres import address, create_database, create_role, kept_password, run_sql
from local.private_file import private_folder, write_private
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

    Args:
        name: name of the process.
        folder: directory of its log.
        arguments: arguments of the `airflow` command.
        environment: Airflow's configuration.
        is_ready: returns whether the component is ready, given its start time (seconds since the epoch).
        ports: the ports it listens on, by the names of their settings.
    """

    # Querying the database costs more than probing a port, and four components start at once.
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
        """Record the time of the start, since the database still has heartbeats of earlier processes."""
        self._started = time.time()

    def command(self) -> list[str]:
        """Return the `airflow` command line of the component."""
        return [str(_PROGRAM), *self._arguments]

    def environment(self) -> dict[str, str]:
        """Return the caller's environment with Airflow's configuration."""
        return dict(self._environment)

    def ready(self) -> bool:
        """Return whether the component is working."""
        return self._is_ready(self._started)


class Airflow:
    """Airflow with the LocalExecutor, the repository's DAGs and its plugins.

    Args:
        folder: Airflow's home directory, for secrets and logs.
        admin_dsn: a PostgreSQL server, with a login that can create a role and a database for the metadata.
        environment: additional environment variables for DAGs and plugins, such as connections.
        dags: the DAGs directory.
        port: port of the UI and the API; None picks a free one.
        metrics_port: port of the metrics of the triggerer; None picks a free one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        admin_dsn: str,
        environment: Mapping[str, str],
        dags: Path = REPOSITORY / "dags",
        port: int | None = None,
        metrics_port: int | None = None,
    ) -> None:
        self.folder = private_folder(folder)
        self.port = port or free_port()
        self.metrics_port = metrics_port or free_port()
        self.username = "admin"
        #: The user that Jenkins logs in as.
        self.jenkins_username = "jenkins"
        self._admin_dsn = admin_dsn
        self._secrets = _secrets(folder / "secrets.json")
        #: The environment in which a command such as `airflow dags test` uses this Airflow.
        self.environment = {
            # The caller's own AIRFLOW variables are meant for another Airflow.
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            **self._configuration(dags),
            "CACHESYNC_METRICS_PORT": str(self.metrics_port),
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
        # The triggerer listens only once it has work.
        self.ports: Mapping[str, int] = {**self.api_server.ports, "triggerer_metrics": self.metrics_port}

    def another_triggerer(self, capacity: int) -> Component:
        """Return an additional triggerer, not yet started, that runs up to `capacity` triggers at once."""
        return self._component(
            "triggerer",
            partial(self._has_beaten, "TriggererJob"),
            "--skip-serve-logs",
            f"--capacity={capacity}",
            suffix="-2",
        )

    @property
    def url(self) -> str:
        """The URL of the UI; the API is below `/api/v2`."""
        return f"http://{HOST}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """The URL of the metrics of the triggerer, which serves them once it has work."""
        return f"http://{HOST}:{self.metrics_port}/metrics"

    @property
    def password(self) -> str:
        """The password of `username`."""
        return self._secrets["password"]

    @property
    def jenkins_password(self) -> str:
        """The password of `jenkins_username`."""
        return kept_password(self.folder / "jenkins-password")

    def start(self) -> Self:
        """Start all components in parallel and wait until they are ready."""
        self._prepare_database()
        start_all(self.components)
        return self

    def stop(self) -> None:
        """Stop all components in parallel."""
        stop_all(self.components)

    def kill(self) -> None:
        """Kill all components."""
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
                # By default, tasks connect to port 8080, whatever the API server's port is.
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
            # A file that changes is parsed within 10 s. To parse the others every 30 s would be a third of
            # what the DAG processor does.
            "dag_processor": {
                "parsing_processes": "1",
                "refresh_interval": "10",
                "min_file_process_interval": "120",
            },
            "logging": {
                "base_log_folder": str(self.folder / "logs"),
                "dag_processor_child_process_log_directory": str(self.folder / "logs" / "dag_processor"),
            },
            # A component is ready after its first heartbeat, and a task's end is noticed at the next one.
            # A task lost between Airflow's processes runs again after a minute, not after five or ten.
            "scheduler": {
                "scheduler_heartbeat_sec": "1",
                "job_heartbeat_sec": "1",
                "task_instance_heartbeat_timeout": "60",
                "task_queued_timeout": "60",
                "task_queued_timeout_check_interval": "10",
                "orphaned_tasks_check_interval": "60",
            },
            "workers": {"min_heartbeat_interval": "1"},
            # How soon another triggerer takes over the triggers of a dead one.
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
        """Create the metadata database from a template, which is migrated only once because that is slow."""
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
        """Return whether such a component has started since then and has sent its first heartbeat."""
        statement = (
            "SELECT count(*) > 0 FROM job WHERE job_type = :'job' AND latest_heartbeat > start_date"
            " AND start_date > to_timestamp(:since)"
        )
        return run_sql(self._dsn("airflow"), statement, job=job, since=str(since)) == "t"


def _secrets(file: Path) -> dict[str, str]:
    """Return the secrets that must survive a restart; generate them on the first start."""
    if not file.exists():
        made = {name: secrets.token_urlsafe(64) for name in ("database", "secret_key", "jwt_secret")}
        made["password"] = secrets.token_urlsafe(12)
        made["fernet_key"] = urlsafe_b64encode(secrets.token_bytes(32)).decode()
        write_private(file, json.dumps(made))
    known: dict[str, str] = json.loads(file.read_text())
    return known


def _for_airflow(dsn: str) -> str:
    return dsn.replace("postgresql:", "postgresql+psycopg2:", 1)


def connections(redis_urls: Mapping[str, str], bootstrap_servers: str, dsn: str) -> dict[str, str]:
    """Return Airflow's connections as environment variables.

    Args:
        redis_urls: the Redis of each service.
        bootstrap_servers: the Kafka brokers.
        dsn: the database that the services share, with the login of the background work.
    """
    broker = {"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap_servers}}
    variables = {
        "AIRFLOW_CONN_POSTGRES_CACHESYNC": dsn,
        "AIRFLOW_CONN_KAFKA_CACHESYNC": json.dumps(broker),
    }
    for service, url in redis_urls.items():
        consumer = consumer_settings({"bootstrap.servers": bootstrap_servers}, group_of(service))
        kafka = {"conn_type": "kafka", "extra": consumer}
        variables[f"AIRFLOW_CONN_REDIS_{service.upper()}"] = url
        variables[f"AIRFLOW_CONN_KAFKA_{service.upper()}"] = json.dumps(kafka)
    return variables
