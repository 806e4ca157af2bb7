"""The demo: a sequence of real calls that shows what the system does, and how long each call takes."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import quote

import httpx
from redis import Redis

from cachesync.slots.layout import slot_name
from cachesync.value import VERSION, encode_version
from local.command import cachesync
from local.errors import LocalError
from local.process import run
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from rich.console import Console

_STREAM_SECONDS = 90.0
_FOLLOW_SECONDS = 10.0
_POLL_SECONDS = 0.001
_OUTAGE_SECONDS = 60.0


class StoryError(LocalError):
    """A step of the demo failed."""


class _Service(Protocol):
    @property
    def url(self) -> str: ...


class _Redis(Protocol):
    def stop(self) -> None: ...

    def start(self) -> object: ...


class _Airflow(Protocol):
    @property
    def url(self) -> str: ...

    @property
    def username(self) -> str: ...

    @property
    def password(self) -> str: ...

    @property
    def jenkins_username(self) -> str: ...

    @property
    def jenkins_password(self) -> str: ...


class DemoSystem(Protocol):
    """A running system, as the demo uses it: the local one, or the one in containers."""

    @property
    def folder(self) -> Path:
        """A directory for the report of the reconciliation."""

    @property
    def services(self) -> Mapping[str, _Service]:
        """The services `sa` and `sb`."""

    @property
    def redis(self) -> Mapping[str, _Redis]:
        """The Redis servers that can be stopped and started, by service."""

    @property
    def redis_urls(self) -> Mapping[str, str]:
        """The address of each service's Redis; that of `sb` is required."""

    @property
    def bootstrap_servers(self) -> str:
        """The Kafka brokers."""

    @property
    def worker_dsn(self) -> str:
        """The database, with the login of Airflow's background work."""

    @property
    def airflow(self) -> _Airflow:
        """Airflow and its users."""

    @property
    def triggerer_log(self) -> str:
        """Where to find the Airflow triggerer's log, for error messages."""

    def sql(self, statement: str, **variables: str) -> str:
        """Run a statement as the administrator and return its output, as `psql -At` prints it.

        The statement can refer to the variables as `:name` or `:'name'`.
        """


class Story:
    """The demo, run once on a running system.

    Args:
        system: the system.
        console: receives one line per step, with the time it took.
    """

    def __init__(self, system: DemoSystem, console: Console) -> None:
        self._system = system
        self._console = console
        self._sa = httpx.Client(base_url=system.services["sa"].url, timeout=10)
        self._sb = httpx.Client(base_url=system.services["sb"].url, timeout=10)

    def run(self) -> None:
        """Run all steps.

        Raises:
            StoryError: a step failed; the message says which one and how.
        """
        with self._sa, self._sb:
            self._wait_for_streams()
            student = self._written_at_one_read_at_the_other()
            self._followed(student)
            self._changed_by_the_other_service(student)
            self._changed_with_psql(student)
            self._deleted(student)
            self._invalidated()
            self._redis_stopped_and_started()
            self._poisoned_retried_and_parked()
            self._reconciled_as_jenkins_does()

    def _wait_for_streams(self) -> None:
        """Wait until Airflow is working: changes made by each service and in SQL reach the caches."""
        started = time.monotonic()
        deadline = started + _STREAM_SECONDS
        for change, reader in (
            (lambda: self._sa.patch("/students/0", json={"age": 2}), self._sb),
            (lambda: self._sb.patch("/students/0", json={"age": 2}), self._sa),
            (lambda: self._system.sql("UPDATE student SET age = 2 WHERE id = 0"), self._sb),
        ):
            while not self._arrives(change, reader):
                if time.monotonic() > deadline:
                    message = (
                        f"changes did not reach the caches within {_STREAM_SECONDS:.0f} s; check the DAGs "
                        f"cache_sync and outbox_relay, and {self._system.triggerer_log}"
                    )
                    raise StoryError(message)
        self._say(
            "Airflow is publishing changes and applying them to both caches", time.monotonic() - started
        )

    @staticmethod
    def _arrives(change: Callable[[], object], reader: httpx.Client) -> bool:
        reader.put("/students/0", json={"name": "Canary", "age": 1})
        change()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            if reader.get("/students/0").json().get("age") == 2:  # noqa: PLR2004 - the age that the change sets
                return True
            time.sleep(0.05)
        return False

    def _written_at_one_read_at_the_other(self) -> str:
        key = time.time_ns() // 1_000_000
        answer, seconds = _timed(
            lambda: self._sa.post("/students", json={"id": key, "name": "Ann", "age": 20})
        )
        self._expect(answer, 201)
        path = answer.headers["location"]
        self._say(f"sa: POST /students -> 201, {path}, version {answer.headers['etag']}", seconds)
        for outcome in ("MISS", "HIT"):
            answer, seconds = _timed(lambda: self._sb.get(path))
            self._expect(answer, 200, outcome)
            self._say(f"sb: GET {path} -> {outcome}  {answer.text}", seconds)
        return str(path)

    def _followed(self, path: str) -> None:
        answer, seconds = _timed(lambda: self._sa.patch(path, json={"age": 21}))
        self._expect(answer, 200)
        self._say(f"sa: PATCH {path} -> version {answer.headers['etag']}", seconds)
        seconds = self._until(self._sb, path, lambda seen: seen.headers.get("etag") == answer.headers["etag"])
        self._expect(self._sb.get(path), 200, "HIT")
        self._say("sb's cache is updated through PostgreSQL, Kafka and Airflow -> HIT", seconds)

    def _changed_by_the_other_service(self, path: str) -> None:
        _cached(self._sa, path)
        answer = self._sb.put(path, json={"name": "Anna", "age": 22})
        self._expect(answer, 200)
        seconds = self._until(self._sa, path, lambda seen: seen.headers.get("etag") == answer.headers["etag"])
        self._expect(self._sa.get(path), 200, "HIT")
        self._say(f"sb: PUT {path}; sa's cache is updated -> HIT  {answer.text}", seconds)

    def _changed_with_psql(self, path: str) -> None:
        key = path.rpartition("/")[2]
        for client in (self._sa, self._sb):
            _cached(client, path)
        self._system.sql("UPDATE student SET age = 23 WHERE id = :'key'", key=key)
        started = time.monotonic()
        for client in (self._sa, self._sb):
            self._until(client, path, lambda seen: seen.json()["age"] == 23)  # noqa: PLR2004 - the age that was just set
            self._expect(client.get(path), 200, "HIT")
        self._say("SQL client: UPDATE student; both caches are updated -> HIT", time.monotonic() - started)

    def _deleted(self, path: str) -> None:
        self._expect(self._sa.delete(path), 204)
        seconds = self._until(self._sb, path, lambda seen: seen.status_code == httpx.codes.NOT_FOUND)
        self._say(f"sa: DELETE {path}; sb: GET -> 404", seconds)

    def _invalidated(self) -> None:
        answer = self._sa.post("/courses", json={"title": "Logic", "fee": 12.5, "details": {"room": "A1"}})
        self._expect(answer, 201)
        path = answer.headers["location"]
        _cached(self._sb, path)
        answer = self._sa.patch(path, json={"details": {"seats": 30}})
        self._expect(answer, 200)
        seconds = self._until(self._sb, path, lambda seen: seen.headers.get("etag") == answer.headers["etag"])
        self._say(f"sa: PATCH {path} (uuid key, on_change = invalidate); sb reloads it", seconds)

    def _redis_stopped_and_started(self) -> None:
        server = self._system.redis.get("sb")
        if server is None:
            self._console.print("             (sb's Redis is your own server, so the demo does not stop it)")
            return
        self._expect(self._sa.put("/students/1", json={"name": "Eve", "age": 30}))
        _cached(self._sb, "/students/1")
        server.stop()
        answer, seconds = _timed(lambda: self._sb.get("/students/1"))
        self._expect(answer, 200, "BYPASS")
        self._say("sb's Redis is stopped; sb: GET /students/1 -> BYPASS, served from the database", seconds)
        written = self._sa.put("/students/1", json={"name": "Eve", "age": 31})
        self._expect(written, 200)
        server.start()
        started = time.monotonic()
        answer = self._sb.get("/students/1")
        while answer.headers.get("x-cache") != "HIT":
            if time.monotonic() - started > _OUTAGE_SECONDS:
                self._fail(answer, "sb did not resume using its cache")
            time.sleep(0.02)
            answer = self._sb.get("/students/1")
        if answer.headers["etag"] != written.headers["etag"]:
            self._fail(answer, "sb's cache missed the write that sa made while Redis was stopped")
        self._say(
            "sb's Redis is started again; sb: GET /students/1 -> HIT, with sa's latest change",
            time.monotonic() - started,
        )

    def _poisoned_retried_and_parked(self) -> None:
        path = "/students/3"
        with _denied(self._system.redis_urls["sb"], "3"):
            written = self._sa.put(path, json={"name": "Joe", "age": 40})
            self._expect(written)
            version = written.headers["etag"].strip('"')
            started = time.monotonic()
            while (done := self._done_with_letters(version))[-1:] != ["parked"]:
                if time.monotonic() - started > _OUTAGE_SECONDS:
                    self._fail(
                        written, f"the rejected change was not parked; actions on its dead letter: {done}"
                    )
                self._retry_dead_letters()
            self._say(
                "sb's Redis denies access to the slot of a change; its dead letter is "
                f"{', then '.join(done)}",
                time.monotonic() - started,
            )
        started = time.monotonic()
        cachesync(
            *("dead-letters", "replay", "--service", "sb", "--key", "3"),
            CACHESYNC_DSN=self._system.worker_dsn,
            CACHESYNC_REDIS_URLS=f"sb={self._system.redis_urls['sb']}",
            KAFKA_BOOTSTRAP_SERVERS=self._system.bootstrap_servers,
        )
        if (done := self._done_with_letters(version))[-1] not in {"resolved", "superseded"}:
            self._fail(written, f"the replayed dead letter was not closed; actions on it: {done}")
        self._say(f"cachesync dead-letters replay --key 3 -> {done[-1]}", time.monotonic() - started)

    def _done_with_letters(self, version: str) -> list[str]:
        """Return the actions taken on a change's dead letters."""
        done = "SELECT action FROM cachesync.dead_letter_action WHERE version = :version ORDER BY id"
        return self._system.sql(done, version=version).splitlines()

    def _retry_dead_letters(self) -> None:
        """Trigger the DAG, instead of waiting for its run every minute."""
        with self._airflow() as client:
            runs = "/dags/dead_letter_retry/dagRuns"
            run = client.post(runs, json={"logical_date": None}).raise_for_status().json()["dag_run_id"]
            client.get(f"{runs}/{quote(run)}/wait", params={"interval": 1}).raise_for_status()

    def _wait_for_the_daily_reconciliation(self) -> None:
        """Wait for the scheduled run, which begins when a new system starts and would repair the drift."""
        started = time.monotonic()
        with self._airflow() as client:
            while (
                client.get("/dags/reconcile/dagRuns", params={"state": ["queued", "running"]})
                .raise_for_status()
                .json()["total_entries"]
            ):
                if time.monotonic() - started > _STREAM_SECONDS:
                    message = (
                        f"the daily run of the DAG reconcile did not finish; see {self._system.airflow.url}"
                    )
                    raise StoryError(message)
                time.sleep(0.5)

    @contextmanager
    def _airflow(self) -> Iterator[httpx.Client]:
        airflow = self._system.airflow
        with httpx.Client(base_url=airflow.url, timeout=30) as client:
            login = {"username": airflow.username, "password": airflow.password}
            token = client.post("/auth/token", json=login).raise_for_status().json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            client.base_url = client.base_url.join("/api/v2")
            yield client

    def _reconciled_as_jenkins_does(self) -> None:
        self._wait_for_the_daily_reconciliation()
        path = "/students/2"
        written = self._sa.put(path, json={"name": "Ada", "age": 36})
        self._expect(written)
        _cached(self._sb, path)
        with Redis.from_url(self._system.redis_urls["sb"]) as redis:
            name = slot_name("sb", "student", "2")
            slot = redis.get(name)
            if not isinstance(slot, bytes):
                self._fail(self._sb.get(path), "sb has not cached the row")
            # The version is so high that no change can correct the slot.
            ahead = slot[:1] + encode_version(10**18) + slot[VERSION.stop :].replace(b'"Ada"', b'"Lost"')
            redis.set(name, ahead, keepttl=True)
        seen = self._sb.get(path)
        if '"Lost"' not in seen.text:
            self._fail(seen, "sb does not serve what its cache has")
        self._console.print(
            "             sb's cache is made newer than the database, as after restoring an old backup: "
            f"{seen.text}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        started = time.monotonic()
        report = self._run_jenkins_job()
        self._say(
            "jenkins-job runs the DAG reconcile through Airflow's REST API: "
            f"{report['examined']} examined, {report['ahead']} ahead, {report['repaired']} repaired",
            time.monotonic() - started,
        )
        answer = self._sb.get(path)
        if not report["ahead"] or answer.headers.get("etag") != written.headers["etag"]:
            self._fail(answer, "the reconciliation did not repair sb's cache")
        self._say(f"sb: GET {path} -> {answer.headers['x-cache']}  {answer.text}", 0)

    def _run_jenkins_job(self) -> dict[str, Any]:
        airflow = self._system.airflow
        file = self._system.folder / "report.json"
        environment = {
            "AIRFLOW_URL": airflow.url,
            "AIRFLOW_USERNAME": airflow.jenkins_username,
            "AIRFLOW_PASSWORD": airflow.jenkins_password,
            "BUILD_TAG": f"jenkins-demo-{time.time_ns()}",
            "SERVICES": "sb",
            "REPORT": str(file),
        }
        client = REPOSITORY / "jenkins-job" / "trigger_reconcile.py"
        run([sys.executable, str(client)], environment=os.environ | environment)
        report: dict[str, Any] = json.loads(file.read_text())
        return report

    def _until(self, client: httpx.Client, path: str, condition: Callable[[httpx.Response], bool]) -> float:
        """Poll until a response meets the condition, and return how many seconds that took."""
        started = time.monotonic()
        while not condition(answer := client.get(path)):
            if time.monotonic() - started > _FOLLOW_SECONDS:
                self._fail(answer, f"the change did not arrive within {_FOLLOW_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - started

    def _expect(self, answer: httpx.Response, status: int | None = None, outcome: str | None = None) -> None:
        wrong_status = not answer.is_success if status is None else answer.status_code != status
        if wrong_status or (outcome is not None and answer.headers.get("x-cache") != outcome):
            self._fail(answer, f"expected {status or 'success'} {outcome or ''}".rstrip())

    def _fail(self, answer: httpx.Response, problem: str) -> NoReturn:
        request = answer.request
        seen = f"{answer.status_code} {answer.headers.get('x-cache', '')}".rstrip()
        message = f"{problem}: {request.method} {request.url} -> {seen} {answer.text}"
        raise StoryError(message)

    def _say(self, text: str, seconds: float) -> None:
        self._console.print(
            f"{seconds * 1000:8.1f} ms  {text}", markup=False, highlight=False, soft_wrap=True
        )


def _cached(client: httpx.Client, path: str) -> None:
    """Read often enough that the row is cached."""
    for _ in range(3):
        client.get(path)


def _timed(call: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    answer = call()
    return answer, time.monotonic() - started


@contextmanager
def _denied(url: str, last: str) -> Iterator[None]:
    """Deny the login of a Redis access to the keys that end with a character."""
    with Redis.from_url(url) as redis:
        send: Any = redis.execute_command
        user = redis.acl_whoami()
        # Such as `user default on nopass ~* &* +@all`.
        (rules,) = (rules for line in redis.acl_list() if (rules := line.split())[1] == user)
        allowed = [rule for rule in rules if rule.startswith(("~", "%"))]
        send("ACL SETUSER", user, "resetkeys", f"~*[^{last}]")
        try:
            yield
        finally:
            send("ACL SETUSER", user, "resetkeys", *allowed)
