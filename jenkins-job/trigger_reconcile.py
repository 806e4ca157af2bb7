"""Runs the DAG `reconcile` through Airflow's REST API: starts it, waits until it ends, and saves its report.

All settings come from the environment, where Jenkins puts a job's parameters and credentials. A password
passed as an argument would be visible in the process list.

    AIRFLOW_URL         such as https://airflow.example.com
    AIRFLOW_USERNAME
    AIRFLOW_PASSWORD
    BUILD_TAG           name of the DAG run, so that a repeated request does not start a second one
    BUILD_STARTED       appended to the name if set, since a recreated job numbers its builds from 1 again
    ENTITIES            the DAG's parameters; lists are separated by commas; empty means the DAG's default
    SERVICES
    MODE                full or delta
    DRY_RUN             true or false
    DEEP                true or false
    RATE_LIMIT          a positive integer
    TIMEOUT_MINUTES     how long to wait for the run to end (default: 120)
    REPORT              file for the report (default: report.json)

Exit status: 0 no drift is left, 2 the reconciliation was not completed, 3 drift is left, 130 interrupted.
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
# How long Airflow can be unavailable before the run has been accepted, and again after it has ended.
_PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 10.0
_PROGRESS_SECONDS = 30.0
_RUN_ID_LENGTH = 250
_FAILED_TASKS = 5
_LOG_LINES = 50
_LOG_BYTES = 50_000_000


class CouldNotRunError(Exception):
    """The reconciliation could not be completed; the message gives the reason and what to do."""


class _UnavailableError(Exception):
    """Airflow is temporarily unavailable."""


@dataclass(frozen=True)
class Settings:
    """The client's settings.

    Attributes:
        url: Airflow's base URL, without a trailing slash.
        username, password: the Airflow user.
        run_id: ID of the DAG run.
        conf: parameters of the DAG run.
        timeout: how long to wait for the run to end, in seconds.
        report: file for the report.
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
        """Read the settings from environment variables.

        Raises:
            CouldNotRunError: a variable is missing or invalid; the message names it.
        """
        given = {name: value.strip() for name, value in environment.items() if value.strip()}
        required = ("AIRFLOW_URL", "AIRFLOW_USERNAME", "AIRFLOW_PASSWORD", "BUILD_TAG")
        if missing := [name for name in required if name not in given]:
            message = f"missing environment variables: {', '.join(missing)}"
            raise CouldNotRunError(message)
        url = given["AIRFLOW_URL"].rstrip("/")
        if not _is_address(url):
            message = f"AIRFLOW_URL is {url}; it must be an http:// or https:// URL"
            raise CouldNotRunError(message)
        return cls(
            url=url,
            username=given["AIRFLOW_USERNAME"],
            # Not stripped: a password can begin or end with a space.
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
    """Return a valid DAG run ID; if it must be shortened, it keeps the end, which has the build number."""
    name = f"{tag}__{started}" if started else tag
    return re.sub(r"[^A-Za-z0-9_.~:+-]", "-", name)[-_RUN_ID_LENGTH:]


def _conf(given: Mapping[str, str]) -> dict[str, object]:
    conf: dict[str, object] = {}
    for name in {"ENTITIES", "SERVICES"} & given.keys():
        conf[name.lower()] = [part.strip() for part in given[name].split(",") if part.strip()]
    for name in {"DRY_RUN", "DEEP"} & given.keys():
        if given[name] not in {"true", "false"}:
            message = f"{name} is {given[name]}; it must be true or false"
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
        message = f"{name} is {text}; it must be a positive integer"
        raise CouldNotRunError(message)
    return int(text)


class Airflow:
    """A client of Airflow's REST API that retries requests while Airflow is unavailable.

    Args:
        settings: Airflow's URL and the login.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = httpx.Client(base_url=settings.url, timeout=_REQUEST_SECONDS)
        self._token: str | None = None
        self._until = 0.0
        self.be_patient(_PATIENCE_SECONDS)

    def be_patient(self, seconds: float) -> None:
        """Retry failed requests for up to the given number of seconds from now on."""
        self._until = time.monotonic() + seconds

    def get(self, path: str, **params: str | int | list[str]) -> dict[str, Any]:
        """Send a GET request and return the JSON response, or an empty dictionary for 404.

        Raises:
            CouldNotRunError: Airflow rejected the request or stayed unavailable.
        """
        answer = self._ask("GET", path, params=params)
        return {} if answer.status_code == httpx.codes.NOT_FOUND else _content(answer)

    def create(self, path: str, body: Mapping[str, object]) -> dict[str, Any] | None:
        """Send a POST request and return the JSON response, or None if the object already exists (409).

        Raises:
            CouldNotRunError: Airflow rejected the request or stayed unavailable.
        """
        answer = self._ask("POST", path, json=body)
        return None if answer.status_code == httpx.codes.CONFLICT else _content(answer)

    def lines(self, path: str, **params: str | int) -> Iterable[str]:
        """Yield the lines of a response that can be long, up to a size limit.

        Raises:
            CouldNotRunError: Airflow rejected the request or stayed unavailable.
            httpx.RequestError: the connection broke while the lines were being read.
        """
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
            retry=retry_if_exception_type(_UnavailableError),
            wait=wait_random_exponential(multiplier=0.5, max=_POLL_SECONDS),
            stop=lambda _: time.monotonic() > self._until,
            before_sleep=_print_outage,
            reraise=True,
        )
        try:
            return retrying(self._ask_once, method, path, stream=stream, **parts)
        except _UnavailableError as error:
            message = f"{self._settings.url} is unavailable: {error}"
            raise CouldNotRunError(message) from error

    def _ask_once(self, method: str, path: str, *, stream: bool, **parts: Any) -> httpx.Response:
        fresh = self._token is None
        answer = self._send(method, path, stream=stream, **parts)
        if answer.status_code == httpx.codes.UNAUTHORIZED and not fresh:
            # A token can expire before the run ends.
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
            # The response body is omitted, since it can repeat the password.
            message = f"login as {self._settings.username} failed: {answer.url} returned {answer.status_code}"
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                message += "; check the user name and the password"
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
            raise _UnavailableError(message) from error
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            answer.close()
            message = f"{request.url.path} returned {answer.status_code}"
            raise _UnavailableError(message)
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
    return CouldNotRunError(f"the response from {answer.url} is not Airflow's; check AIRFLOW_URL")


def _refused(answer: httpx.Response) -> CouldNotRunError:
    request = answer.request
    detail = answer.headers.get("location") or answer.text[:500]
    return CouldNotRunError(f"{request.method} {request.url.path} -> {answer.status_code} {detail}")


def _print_outage(state: RetryCallState) -> None:
    if state.outcome is not None:
        print(f"Airflow is unavailable ({state.outcome.exception()}); retrying", flush=True)


class Reconciliation:
    """One run of the DAG `reconcile`.

    Args:
        settings: the client's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._airflow = Airflow(settings)
        self._run = f"{_DAG}/dagRuns/{settings.run_id}"
        self._page = f"{settings.url}/dags/reconcile/runs/{settings.run_id}"

    def run(self) -> int:
        """Start the DAG run, wait until it ends, and write its report.

        Returns:
            The exit status: `SUCCESS` or `DRIFT_LEFT`.

        Raises:
            CouldNotRunError: the reconciliation could not be completed.
        """
        # A report that an earlier build left behind must not be taken for this one's.
        self._settings.report.unlink(missing_ok=True)
        self._trigger()
        try:
            state = self._wait()
        except KeyboardInterrupt:
            print(f"interrupted; the DAG run continues: {self._page}", flush=True)
            raise
        self._airflow.be_patient(_PATIENCE_SECONDS)
        if state != "success":
            self._print_failures()
        return self._judge(state, self._fetch_report())

    def _trigger(self) -> None:
        dag = self._airflow.get(_DAG)
        if not dag:
            message = "the DAG reconcile does not exist, or this user cannot see it"
            raise CouldNotRunError(message)
        if dag["is_paused"]:
            message = "the DAG reconcile is paused, so its runs do not start; unpause it"
            raise CouldNotRunError(message)
        # Without a logical date, since two runs can start at the same moment.
        body = {"dag_run_id": self._settings.run_id, "logical_date": None, "conf": self._settings.conf}
        run = self._airflow.create(f"{_DAG}/dagRuns", body)
        if run is None:
            # An earlier request succeeded although its response was lost, or the build's step is repeated.
            run = self._airflow.get(self._run)
            if run.get("conf") != self._settings.conf:
                message = (
                    f"the DAG run {self._settings.run_id} already exists and is not this build's: "
                    f"{run or 'not visible to this user'}"
                )
                raise CouldNotRunError(message)
        print(f"DAG run accepted with {json.dumps(self._settings.conf)}: {self._page}", flush=True)

    def _wait(self) -> str:
        """Wait until the DAG run ends, and return its state."""
        started = time.monotonic()
        deadline = started + self._settings.timeout
        self._airflow.be_patient(self._settings.timeout)
        reported = ("", 0.0)
        for attempt in count(1):
            run = self._airflow.get(self._run)
            if not run:
                message = "the DAG run has been deleted"
                raise CouldNotRunError(message)
            state, now = str(run["state"]), time.monotonic()
            if state in {"success", "failed"}:
                print(f"{state} after {now - started:.0f} s", flush=True)
                return state
            if now > deadline:
                message = (
                    f"not finished after {self._settings.timeout:.0f} s; the DAG run continues: {self._page}"
                )
                raise CouldNotRunError(message)
            if state != reported[0] or now - reported[1] > _PROGRESS_SECONDS:
                print(f"{state}, {now - started:.0f} s, {self._progress()}", flush=True)
                reported = (state, now)
            # Jitter, so that concurrent builds do not poll in step.
            time.sleep(min(attempt, _POLL_SECONDS) * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
        raise AssertionError

    def _progress(self) -> str:
        every, done = (
            self._airflow.get(f"{self._run}/taskInstances", limit=1, **which).get("total_entries", 0)
            for which in ({}, {"state": ["success"]})
        )
        return f"{done} of {every} tasks done"

    def _print_failures(self) -> None:
        instances = self._airflow.get(f"{self._run}/taskInstances", limit=_FAILED_TASKS, state=["failed"])
        for instance in instances["task_instances"]:
            index = instance["map_index"]
            name = instance["task_id"] + (f"[{index}]" if index >= 0 else "")
            print(f"--- last lines of the log of {name}:", flush=True)
            path = f"{self._run}/taskInstances/{instance['task_id']}/logs/{instance['try_number']}"
            try:
                lines = self._airflow.lines(path, map_index=index, full_content="true")
                said = (text for line in lines if (text := _message(line)))
                print(*deque(said, _LOG_LINES), sep="\n", flush=True)
            except (CouldNotRunError, httpx.RequestError) as error:
                print(f"(cannot read the log: {error})", flush=True)
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
            message = f"the DAG run ended in state {state} without a report: {self._page}"
            raise CouldNotRunError(message)
        outcome = report.get("outcome")
        print(f"outcome: {outcome}; report: {self._settings.report}", flush=True)
        if outcome in {"drift", "unrepaired"}:
            return DRIFT_LEFT
        if state != "success" or outcome not in {"clean", "repaired"}:
            message = f"the DAG run ended in state {state} with outcome {outcome}: {self._page}"
            raise CouldNotRunError(message)
        return SUCCESS


def _message(line: str) -> str:
    """Return the text of a structured log line, with its errors; empty for markup of Airflow's UI."""
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
    """Run the reconciliation with the settings in the environment, and return the exit status."""
    # Jenkins sends SIGTERM to the processes of an aborted build.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return Reconciliation(Settings.load(os.environ)).run()
    except CouldNotRunError as error:
        print(f"cannot complete the reconciliation: {error}", file=sys.stderr, flush=True)
        return COULD_NOT_RUN
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
