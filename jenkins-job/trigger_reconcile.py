"""Runs the DAG `reconcile` by Airflow's REST API: triggers it, waits for its end, and fetches its report.

Everything comes from the environment, where Jenkins puts a job's parameters and credentials; a password among
the arguments would be seen in the process list.

    AIRFLOW_URL         such as https://airflow.example.com
    AIRFLOW_USERNAME
    AIRFLOW_PASSWORD
    BUILD_TAG           names the DAG run, so that a repeated request starts no second one
    BUILD_STARTED       part of it too, if given: a job that is made anew counts its builds from 1 again
    ENTITIES            the DAG's parameters, lists separated by commas; empty: what the DAG's default is
    SERVICES
    MODE                full or delta
    DRY_RUN             true or false
    DEEP                true or false
    RATE_LIMIT          a whole number
    TIMEOUT_MINUTES     how long to wait for the end (default: 120)
    REPORT              the file for the report (default: report.json)

Exit status: 0 no drift is left, 2 it could not be run to its end, 3 drift is left, 130 stopped.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUCCESS = 0
COULD_NOT_RUN = 2
DRIFT_LEFT = 3
STOPPED = 130

_DAG = "/api/v2/dags/reconcile"
_REPORT = "taskInstances/report/xcomEntries/return_value"
_REQUEST_SECONDS = 30.0
# How long Airflow may be away while nothing runs yet, and when all that is left is to fetch.
_PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 10.0
_PROGRESS_SECONDS = 30.0
_RUN_ID_LENGTH = 250
_FAILED_TASKS = 5
_LOG_LINES = 50
_LOG_BYTES = 50_000_000


class CouldNotRunError(Exception):
    """The reconciliation could not be run to its end; the text says why and what to do."""


class _AwayError(Exception):
    """Airflow does not answer at the moment."""


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    Attributes:
        url: where Airflow is, without a slash at the end.
        username, password: the Airflow user.
        run_id: the DAG run's name.
        conf: the DAG's parameters.
        timeout: seconds to wait for the end.
        report: the file for the report.

    """

    url: str
    username: str
    password: str = field(repr=False)
    run_id: str
    conf: dict[str, object]
    timeout: float
    report: Path

    @classmethod
    def load(cls, environment: Mapping[str, str]) -> Settings:
        """Read the environment.

        Raises:
            CouldNotRunError: something is missing or wrong; the text names it.

        """
        given = {name: value.strip() for name, value in environment.items() if value.strip()}
        required = ("AIRFLOW_URL", "AIRFLOW_USERNAME", "AIRFLOW_PASSWORD", "BUILD_TAG")
        if missing := [name for name in required if name not in given]:
            message = f"the environment lacks {', '.join(missing)}"
            raise CouldNotRunError(message)
        url = given["AIRFLOW_URL"].rstrip("/")
        if not _is_address(url):
            message = f"AIRFLOW_URL is {url}, which is no http:// or https:// address"
            raise CouldNotRunError(message)
        return cls(
            url=url,
            username=given["AIRFLOW_USERNAME"],
            # As it is: a password may begin or end with a space.
            password=environment["AIRFLOW_PASSWORD"],
            run_id=_run_id(given["BUILD_TAG"], given.get("BUILD_STARTED")),
            conf=_conf(given),
            timeout=60 * _number(given, "TIMEOUT_MINUTES", 120),
            report=Path(given.get("REPORT", "report.json")),
        )


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in {"http", "https"} and bool(parsed.host)


def _run_id(tag: str, started: str | None) -> str:
    """A name that Airflow takes, with the end of the tag, where the build's number is."""
    name = f"{tag}__{started}" if started else tag
    return re.sub(r"[^A-Za-z0-9_.~:+-]", "-", name)[-_RUN_ID_LENGTH:]


def _conf(given: Mapping[str, str]) -> dict[str, object]:
    conf: dict[str, object] = {}
    for name in {"ENTITIES", "SERVICES"} & given.keys():
        conf[name.lower()] = [part.strip() for part in given[name].split(",") if part.strip()]
    for name in {"DRY_RUN", "DEEP"} & given.keys():
        if given[name] not in {"true", "false"}:
            message = f"{name} is {given[name]}, which is neither true nor false"
            raise CouldNotRunError(message)
        conf[name.lower()] = given[name] == "true"
    if "MODE" in given:
        conf["mode"] = given["MODE"]
    if "RATE_LIMIT" in given:
        conf["rate_limit"] = _number(given, "RATE_LIMIT", 0)
    return conf


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal() or int(text) == 0:
        message = f"{name} is {text}, which is no whole number above 0"
        raise CouldNotRunError(message)
    return int(text)


class Airflow:
    """Airflow's REST API. What it does not answer is asked again, until the patience ends.

    Arguments:
        settings: where it is, and who asks

    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = httpx.Client(base_url=settings.url, timeout=_REQUEST_SECONDS)
        self._token: str | None = None
        self._until = 0.0
        self.be_patient(_PATIENCE_SECONDS)

    def be_patient(self, seconds: float) -> None:
        """From now on, take its absence for no longer than this."""
        self._until = time.monotonic() + seconds

    def get(self, path: str, **params: str | int | list[str]) -> dict[str, Any]:
        """What it answers to a GET, or nothing where there is no such thing."""
        answer = self._ask("GET", path, params=params)
        return {} if answer.status_code == httpx.codes.NOT_FOUND else _content(answer)

    def create(self, path: str, body: Mapping[str, object]) -> dict[str, Any] | None:
        """What it answers to a POST, or None where there is one already (409)."""
        answer = self._ask("POST", path, json=body)
        return None if answer.status_code == httpx.codes.CONFLICT else _content(answer)

    def lines(self, path: str, **params: str | int) -> Iterable[str]:
        """The lines of a text that may be long."""
        answer = self._ask(
            "GET", path, params=params, headers={"accept": "application/x-ndjson"}, stream=True
        )
        try:
            if not answer.is_success:
                answer.read()
                raise _refused(answer)
            for line in answer.iter_lines():
                yield line
                if answer.num_bytes_downloaded > _LOG_BYTES:
                    return
        finally:
            answer.close()

    def _ask(self, method: str, path: str, *, stream: bool = False, **parts: Any) -> httpx.Response:
        retrying = Retrying(
            retry=retry_if_exception_type(_AwayError),
            wait=wait_random_exponential(multiplier=0.5, max=_POLL_SECONDS),
            stop=lambda _: time.monotonic() > self._until,
            before_sleep=_tell_that_it_is_away,
            reraise=True,
        )
        try:
            return retrying(self._ask_once, method, path, stream=stream, **parts)
        except _AwayError as error:
            message = f"{self._settings.url} does not answer: {error}"
            raise CouldNotRunError(message) from error

    def _ask_once(self, method: str, path: str, *, stream: bool, **parts: Any) -> httpx.Response:
        fresh = self._token is None
        answer = self._send(method, path, stream=stream, **parts)
        if answer.status_code == httpx.codes.UNAUTHORIZED and not fresh:
            # A run may outlive a token.
            answer.close()
            self._token = None
            answer = self._send(method, path, stream=stream, **parts)
        return answer

    def _send(self, method: str, path: str, *, stream: bool, **parts: Any) -> httpx.Response:
        if self._token is None:
            self._token = self._log_in()
        request = self._client.build_request(method, path, **parts)
        request.headers["authorization"] = f"Bearer {self._token}"
        return self._deliver(request, stream=stream)

    def _log_in(self) -> str:
        who = {"username": self._settings.username, "password": self._settings.password}
        answer = self._deliver(self._client.build_request("POST", "/auth/token", json=who))
        if not answer.is_success:
            # Without the answer's text, which may repeat what was sent.
            message = f"{answer.url} answers {answer.status_code} to the user {self._settings.username}"
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                message += "; are name and password right?"
            raise CouldNotRunError(message)
        token = _content(answer).get("access_token")
        if token is None:
            raise _foreign(answer)
        return str(token)

    def _deliver(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            answer = self._client.send(request, stream=stream)
        except httpx.RequestError as error:
            message = f"{type(error).__name__}: {error}"
            raise _AwayError(message) from error
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            answer.close()
            message = f"{request.url.path} answers {answer.status_code}"
            raise _AwayError(message)
        return answer


def _content(answer: httpx.Response) -> dict[str, Any]:
    if not answer.is_success:
        raise _refused(answer)
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _foreign(answer)
    return content


def _foreign(answer: httpx.Response) -> CouldNotRunError:
    return CouldNotRunError(f"{answer.url} does not answer as Airflow does; is AIRFLOW_URL right?")


def _refused(answer: httpx.Response) -> CouldNotRunError:
    request = answer.request
    detail = answer.headers.get("location") or answer.text[:500]
    return CouldNotRunError(f"{request.method} {request.url.path} -> {answer.status_code} {detail}")


def _tell_that_it_is_away(state: RetryCallState) -> None:
    if state.outcome is not None:
        print(f"Airflow does not answer ({state.outcome.exception()}); asking again", flush=True)


class Reconciliation:
    """One run of the DAG `reconcile`.

    Arguments:
        settings: what the environment says

    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._airflow = Airflow(settings)
        self._run = f"{_DAG}/dagRuns/{settings.run_id}"
        self._page = f"{settings.url}/dags/reconcile/runs/{settings.run_id}"

    def run(self) -> int:
        """Trigger it, wait for its end, and write its report.

        Returns:
            The exit status.

        Raises:
            CouldNotRunError: it could not be run to its end.

        """
        # What an earlier build left is not this one's report.
        self._settings.report.unlink(missing_ok=True)
        self._trigger()
        try:
            state = self._wait()
        except KeyboardInterrupt:
            print(f"stopped waiting; the DAG run goes on: {self._page}", flush=True)
            raise
        self._airflow.be_patient(_PATIENCE_SECONDS)
        if state != "success":
            self._tell_failures()
        return self._judge(state, self._fetch_report())

    def _trigger(self) -> None:
        dag = self._airflow.get(_DAG)
        if not dag:
            message = "Airflow has no DAG reconcile that this user may see"
            raise CouldNotRunError(message)
        if dag["is_paused"]:
            message = "the DAG reconcile is paused: a run of it would never start; unpause it"
            raise CouldNotRunError(message)
        # Without a logical date: two runs may begin in the same moment.
        body = {"dag_run_id": self._settings.run_id, "logical_date": None, "conf": self._settings.conf}
        run = self._airflow.create(f"{_DAG}/dagRuns", body)
        if run is None:
            # An earlier request got through, though its answer did not; or the build's step is run again.
            run = self._airflow.get(self._run)
            if run.get("conf") != self._settings.conf:
                message = (
                    f"the DAG run {self._settings.run_id} exists and is not this build's: {run or 'hidden'}"
                )
                raise CouldNotRunError(message)
        print(f"accepted with {json.dumps(self._settings.conf)}: {self._page}", flush=True)

    def _wait(self) -> str:
        """The state in which it ended."""
        started = time.monotonic()
        deadline = started + self._settings.timeout
        self._airflow.be_patient(self._settings.timeout)
        told = ("", 0.0)
        for attempt in count(1):
            run = self._airflow.get(self._run)
            if not run:
                message = "the DAG run is gone: somebody has deleted it"
                raise CouldNotRunError(message)
            state, now = str(run["state"]), time.monotonic()
            if state in {"success", "failed"}:
                print(f"{state} after {now - started:.0f} s", flush=True)
                return state
            if now > deadline:
                message = (
                    f"not finished after {self._settings.timeout:.0f} s; the DAG run goes on: {self._page}"
                )
                raise CouldNotRunError(message)
            if state != told[0] or now - told[1] > _PROGRESS_SECONDS:
                print(f"{state}, {now - started:.0f} s, {self._progress()}", flush=True)
                told = (state, now)
            # Many builds must not ask in step.
            time.sleep(min(attempt, _POLL_SECONDS) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        raise AssertionError

    def _progress(self) -> str:
        every, done = (
            self._airflow.get(f"{self._run}/taskInstances", limit=1, **which).get("total_entries", 0)
            for which in ({}, {"state": ["success"]})
        )
        return f"{done} of {every} tasks done"

    def _tell_failures(self) -> None:
        instances = self._airflow.get(f"{self._run}/taskInstances", limit=_FAILED_TASKS, state=["failed"])
        for instance in instances["task_instances"]:
            index = instance["map_index"]
            name = instance["task_id"] + (f"[{index}]" if index >= 0 else "")
            print(f"--- the log of {name} ends with", flush=True)
            path = f"{self._run}/taskInstances/{instance['task_id']}/logs/{instance['try_number']}"
            try:
                lines = self._airflow.lines(path, map_index=index, full_content="true")
                said = (text for line in lines if (text := _message(line)))
                print(*deque(said, _LOG_LINES), sep="\n", flush=True)
            except (CouldNotRunError, httpx.RequestError) as error:
                print(f"(cannot be read: {error})", flush=True)
        if (left := instances["total_entries"] - len(instances["task_instances"])) > 0:
            print(f"--- {left} more failed tasks: {self._page}", flush=True)

    def _fetch_report(self) -> dict[str, Any] | None:
        report = self._airflow.get(f"{self._run}/{_REPORT}").get("value")
        if isinstance(report, str):
            report = json.loads(report)
        if not isinstance(report, dict):
            return None
        self._settings.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        return report

    def _judge(self, state: str, report: dict[str, Any] | None) -> int:
        if report is None:
            message = f"the DAG run ended with {state} and without a report: {self._page}"
            raise CouldNotRunError(message)
        outcome = report.get("outcome")
        print(f"{outcome}; the report is in {self._settings.report}", flush=True)
        if outcome in {"drift", "unrepaired"}:
            return DRIFT_LEFT
        if state != "success" or outcome not in {"clean", "repaired"}:
            message = f"the DAG run ended with {state}: {self._page}"
            raise CouldNotRunError(message)
        return SUCCESS


def _message(line: str) -> str:
    """What a line of a structured log says, with the error that it tells of; nothing for a page's mark-up."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line[:1000]
    if not isinstance(entry, dict):
        return line[:1000]
    event = str(entry.get("event"))
    if event.startswith("::"):
        return ""
    errors = [f"{one.get('exc_type')}: {one.get('exc_value')}" for one in entry.get("error_detail") or []]
    return " ".join([str(entry.get("timestamp") or ""), event, *errors]).strip()[:1000]


def main() -> int:
    """Run it as the environment says; the exit status."""
    # Jenkins ends an aborted build's processes with SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return Reconciliation(Settings.load(os.environ)).run()
    except CouldNotRunError as error:
        print(f"could not run: {error}", file=sys.stderr, flush=True)
        return COULD_NOT_RUN
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
