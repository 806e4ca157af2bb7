"""Examines the background work in Airflow, through its REST API."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qsl, quote, urlsplit
from urllib.request import Request, urlopen

from cachesync.errors import SettingsError, StreamError
from cachesync.kafka.groups import consumer_settings
from cachesync.stream.stream import check_consumer_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cachesync.doctor.finding import Part

_SECONDS: Final = 10.0
_ALWAYS: Final = ("cache_sync", "outbox_relay")
_REGULAR: Final = ("dead_letter_retry", "live_check", "reconcile", "stream_check")
# The DAG with the most runs.
_EVERY_MINUTE: Final = "stream_check"
_KEPT: Final = timedelta(days=7)
_TOLERATED: Final = timedelta(days=21)
_DATABASE: Final = "postgres_cachesync"
_BROKERS: Final = "kafka_cachesync"
_DOCUMENTED: Final = "see docs/airflow.md#connections"


class _AirflowError(Exception):
    """Airflow did not respond, or refused a request."""


@dataclass(frozen=True, slots=True)
class Airflow:
    """Airflow's API.

    Attributes:
        url: the address of Airflow, such as `https://airflow.example.com`.
        username: the user, who needs to see connections, DAGs and their runs.
        password: the password.
        environment: the environment variables, in which connections can be; Airflow looks there first.
    """

    url: str
    username: str
    password: str = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    def check(self) -> None:
        """Check the settings without connecting.

        Raises:
            SettingsError: the URL is not one of HTTP, or there is no login.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            message = "--airflow (AIRFLOW_URL) must be an http:// or https:// URL"
            raise SettingsError(message)
        if not self.username or not self.password:
            message = "set AIRFLOW_USERNAME and AIRFLOW_PASSWORD to the login of an Airflow user"
            raise SettingsError(message)

    def token(self) -> str:
        """Log in and return a token.

        Raises:
            _AirflowError: Airflow did not respond, or refused the login.
        """
        login = json.dumps({"username": self.username, "password": self.password}).encode()
        answer = self._answer(self._request("/auth/token", login))
        return str((answer or {}).get("access_token"))

    def get(self, path: str, token: str) -> dict[str, Any] | None:
        """Return what the API has under a path; None if there is nothing.

        Args:
            path: the path below `/api/v2`.
            token: the token of the login.

        Raises:
            _AirflowError: Airflow did not respond, or refused the request.
        """
        request = self._request(f"/api/v2/{path}")
        request.add_header("Authorization", f"Bearer {token}")
        return self._answer(request)

    def _request(self, path: str, body: bytes | None = None) -> Request:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        return Request(self.url.rstrip("/") + path, body, headers)  # noqa: S310 - `check` has seen the scheme

    def _answer(self, request: Request) -> dict[str, Any] | None:
        try:
            with urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
                answer: dict[str, Any] = json.load(response)
        except HTTPError as error:
            with error:
                if error.code == HTTPStatus.NOT_FOUND:
                    return None
            message = f"Airflow: {request.selector}: {error.code} {error.reason}"
            raise _AirflowError(message) from error
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            message = f"Airflow is unavailable: {reason}"
            raise _AirflowError(message) from error
        return answer


async def examine_airflow(
    part: Part, airflow: Airflow, services: Iterable[str], groups: dict[str, str]
) -> None:
    """Examine Airflow's processes, DAGs and connections.

    Args:
        part: takes the findings.
        airflow: Airflow's API.
        services: the services that have a cache.
        groups: takes the consumer groups that the connections name, by the name of the service.
    """
    try:
        token = await asyncio.to_thread(airflow.token)
    except _AirflowError as error:
        part.error(
            "connection", str(error), "check --airflow (AIRFLOW_URL), AIRFLOW_USERNAME and AIRFLOW_PASSWORD"
        )
        return

    examination = _Examination(part, airflow, token, groups)
    connections = [_DATABASE, _BROKERS]
    for service in services:
        connections += [f"redis_{service}", f"kafka_{service}"]
    await asyncio.gather(
        examination.examine(
            "processes", "monitor/health", lambda health: judge_processes(part, health or {})
        ),
        *(
            examination.examine("DAGs", f"dags/{name}", partial(judge_dag, part, name))
            for name in (*_ALWAYS, *_REGULAR)
        ),
        examination.examine(
            "housekeeping",
            f"dags/{_EVERY_MINUTE}/dagRuns?order_by=run_after&limit=1",
            lambda runs: judge_runs(part, runs or {}, datetime.now(UTC)),
        ),
        *map(examination.examine_connection, connections),
    )


class _Examination:
    def __init__(self, part: Part, airflow: Airflow, token: str, groups: dict[str, str]) -> None:
        self._part = part
        self._airflow = airflow
        self._token = token
        self._groups = groups

    async def examine_connection(self, name: str) -> None:
        """Judge a connection, which Airflow's database has unless it is elsewhere."""
        given = self._airflow.environment.get(f"AIRFLOW_CONN_{name.upper()}")
        if given is not None:
            self._judge_connection(name, connection_in(given))
            return
        await self.examine("connections", f"connections/{quote(name)}", partial(self._judge_connection, name))

    async def examine(self, check: str, path: str, judge: Callable[[dict[str, Any] | None], None]) -> None:
        """Judge what the API has under a path."""
        try:
            found = await asyncio.to_thread(self._airflow.get, path, self._token)
        except _AirflowError as error:
            self._part.not_checked(check, str(error), "let the user see connections, DAGs and their runs")
        else:
            judge(found)

    def _judge_connection(self, name: str, found: dict[str, Any] | None) -> None:
        group = judge_connection(self._part, name, found)
        if group is not None:
            self._groups[name.removeprefix("kafka_")] = group


def judge_processes(part: Part, health: Mapping[str, Any]) -> None:
    """Record which of Airflow's processes are not alive.

    Args:
        part: takes the findings.
        health: what `/monitor/health` says.
    """
    remedies = {
        "triggerer": "start `airflow triggerer`; without one, no change is published or applied",
        "scheduler": "start `airflow scheduler`",
        "dag_processor": "start `airflow dag-processor`",
    }
    alive = []
    for process, remedy in remedies.items():
        status = (health.get(process) or {}).get("status")
        if status == "healthy":
            alive.append(process)
        else:
            part.error("processes", f"the {process.replace('_', ' ')} is not alive ({status})", remedy)
    if len(alive) == len(remedies):
        part.ok("processes", "the triggerer, the scheduler and the DAG processor are alive")


def judge_dag(part: Part, name: str, dag: Mapping[str, Any] | None) -> None:
    """Record whether a DAG can run.

    Args:
        part: takes the finding.
        name: the DAG.
        dag: what the API says of it; None if it does not know it.
    """
    if dag is None:
        part.error(
            "DAGs", f"there is no DAG {name}", "install the DAG bundle; see docs/airflow.md#installation"
        )
    elif dag.get("is_paused"):
        record = part.error if name in _ALWAYS else part.warning
        record("DAGs", f"the DAG {name} is paused", f"run airflow dags unpause {name}")
    elif dag.get("has_import_errors"):
        part.error("DAGs", f"the DAG {name} cannot be imported", "run airflow dags list-import-errors")
    else:
        part.ok("DAGs", f"{name} is not paused")


def judge_runs(part: Part, runs: Mapping[str, Any], now: datetime) -> None:
    """Record whether old runs are deleted, of which there are more than a thousand per day.

    Args:
        part: takes the finding.
        runs: the oldest run, as the API lists it.
        now: the current time.
    """
    oldest = next((run.get("run_after") for run in runs.get("dag_runs", ())), None)
    if oldest is None:
        part.not_checked("housekeeping", f"the DAG {_EVERY_MINUTE} has no run yet")
        return
    age = now - datetime.fromisoformat(oldest)
    if age > _TOLERATED:
        before = f"{now - _KEPT:%Y-%m-%dT%H:%M:%S+00:00}"
        part.warning(
            "housekeeping",
            f"the oldest of {runs.get('total_entries', 0):,} runs of {_EVERY_MINUTE} is {age.days} days old",
            f"regularly run airflow db clean --clean-before-timestamp {before} --skip-archive --yes; a "
            "time that is less than a day ago would also delete tasks that wait",
        )
    else:
        part.ok("housekeeping", f"the oldest run of {_EVERY_MINUTE} is {age.days} days old")


def connection_in(text: str) -> dict[str, Any]:
    """Return the type and the extra of a connection in an environment variable.

    Args:
        text: the connection as JSON or as a URI, as Airflow accepts it.
    """
    try:
        connection = json.loads(text)
    except ValueError:
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query))
        kind = parts.scheme.replace("-", "_")
        return {
            "conn_type": "postgres" if kind == "postgresql" else kind,
            "extra": query.get("__extra__", query),
        }
    return connection if isinstance(connection, dict) else {}


def judge_connection(part: Part, name: str, found: Mapping[str, Any] | None) -> str | None:
    """Record whether a connection is as the DAGs need it.

    Args:
        part: takes the findings.
        name: the connection.
        found: what the API says of it; None if it does not exist.

    Returns:
        The consumer group of a cache; None if the connection names none.
    """
    kind, _, service = name.partition("_")
    if found is None:
        part.not_checked(
            "connections",
            f"the connection {name} is neither in Airflow's database nor in the environment",
            f"if no secrets backend has it, create it with the type {kind}; {_DOCUMENTED}. If it is in the "
            "environment of Airflow, run this command there",
        )
        return None
    if found.get("conn_type") != kind:
        part.error(
            "connections",
            f"the connection {name} has the type {found.get('conn_type')!r}",
            f"give it the type {kind!r}; {_DOCUMENTED}",
        )
        return None
    if kind != "kafka":
        part.ok("connections", f"{name} exists")
        return None
    try:
        given = found.get("extra") or {}
        extra = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        part.error("connections", f"the extra of {name} is not JSON", _DOCUMENTED)
        return None
    if not extra.get("bootstrap.servers"):
        part.error("connections", f"the extra of {name} does not set bootstrap.servers", _DOCUMENTED)
    if name == _BROKERS:
        part.ok("connections", f"{name} exists")
        return None
    return _judge_consumer(part, name, service, extra)


def _judge_consumer(part: Part, name: str, service: str, extra: Mapping[str, Any]) -> str | None:
    group = extra.get("group.id")
    if not group:
        part.error(
            "connections",
            f"the extra of {name} does not set group.id",
            f"set it to a group of its own, such as cachesync-{service}",
        )
        return None
    before = len(part.findings)
    try:
        check_consumer_settings(extra)
    except StreamError as error:
        part.error("connections", f"{name}: {error}", f"correct its extra; {_DOCUMENTED}")
    documented = consumer_settings({}, group)
    differing = [
        f"{setting}={extra.get(setting, 'unset')} instead of {value}"
        for setting, value in documented.items()
        if setting not in {"group.id", "enable.auto.commit", "auto.offset.reset"}
        and str(extra.get(setting)) != str(value)
    ]
    if "queued.min.messages" in extra:
        differing.append(f"queued.min.messages={extra['queued.min.messages']} instead of its default")
    if differing:
        part.warning(
            "connections",
            f"{name} has {', '.join(differing)}",
            "set what docs/airflow.md gives, or know why not",
        )
    if len(part.findings) == before:
        part.ok("connections", f"{name} has the documented settings")
    return str(group)
