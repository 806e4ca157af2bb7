"""The client that the Jenkins pipeline calls, against a stub of Airflow's REST API that can be made to fail.

tests/acceptance/test_jenkins_pipeline.py runs it against a real Airflow.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import trigger_reconcile
from trigger_reconcile import COULD_NOT_RUN, DRIFT_LEFT, STOPPED, SUCCESS, main

from local.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = Path(__file__).parents[2] / "jenkins-job" / "trigger_reconcile.py"
PASSWORD = "pa55 word$'\""
RUN = "jenkins-reconcile-7"
RUNS = "/api/v2/dags/reconcile/dagRuns"

Run = Callable[..., tuple[int, str]]


class Stub:
    """A stub of Airflow's REST API.

    Attributes:
        failures: by path, the statuses of the next responses; None closes the connection without a response.
    """

    def __init__(self) -> None:
        self.failures: defaultdict[str, list[int | None]] = defaultdict(list)
        self.after_creation: list[int | None] = []
        self.states = ["queued", "running", "success"]
        self.report: object = {"outcome": "clean", "examined": 3}
        self.paused = False
        self.runs: dict[str, dict[str, Any]] = {}
        self.failed_tasks: list[dict[str, Any]] = []
        self.created: list[dict[str, Any]] = []
        self.token_lasts = 1_000_000
        self.logins = 0
        self._uses = 0
        self._token = ""
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, token: str, body: dict[str, Any]) -> tuple[int | None, object]:
        with self._lock:
            if self.failures[path]:
                return self.failures[path].pop(0), {}
            if path == "/auth/token":
                return self._log_in(body)
            self._uses += 1
            if token != self._token or self._uses > self.token_lasts:
                return 401, {"detail": "Not authenticated"}
            if path == "/api/v2/dags/reconcile":
                return 200, {"is_paused": self.paused}
            if path == RUNS and method == "POST":
                return self._create(body)
            return self._read(path)

    def _log_in(self, body: dict[str, Any]) -> tuple[int, object]:
        if body != {"username": "jenkins", "password": PASSWORD}:
            return 401, {"detail": "Invalid credentials", "input": body}
        self.logins += 1
        self._uses = 0
        self._token = f"token-{self.logins}"
        return 201, {"access_token": self._token}

    def _create(self, body: dict[str, Any]) -> tuple[int | None, object]:
        if body["dag_run_id"] in self.runs:
            return 409, {"detail": "exists"}
        self.created.append(body)
        self.runs[body["dag_run_id"]] = {"conf": body["conf"], "state": "queued"}
        return (self.after_creation.pop(0) if self.after_creation else 200), {}

    def _read(self, path: str) -> tuple[int, object]:
        run = self.runs.get(path.removeprefix(f"{RUNS}/").partition("/")[0])
        if run is None:
            return 404, {"detail": "not found"}
        if path.endswith("/taskInstances"):
            return 200, {"task_instances": self.failed_tasks[:5], "total_entries": len(self.failed_tasks)}
        if "/logs/" in path:
            failed = {"exc_type": "ValueError", "exc_value": "the cause"}
            entries = [{"event": f"line {number}"} for number in range(500)]
            return 200, [
                *entries,
                {"event": "Task failed", "error_detail": [failed]},
                {"event": "::endgroup::"},
            ]
        if path.endswith("/xcomEntries/return_value"):
            return (404, {}) if self.report is None else (200, {"value": self.report})
        run["state"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return 200, run


class Handler(BaseHTTPRequestHandler):
    stub: Stub

    def _handle(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        status, content = self.stub.answer(self.command, urlsplit(self.path).path, token, body)
        if status is None:
            return  # closes the connection without a response
        lines = content if isinstance(content, list) else [content]
        sent = "\n".join(map(json.dumps, lines)).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = _handle  # noqa: N815 - the base class looks up this name
    do_POST = _handle  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def serve(stub: Stub) -> Iterator[Callable[[int], None]]:
    servers: list[ThreadingHTTPServer] = []

    def start(port: int) -> None:
        kind = type("HandlerOfThisTest", (Handler,), {"stub": stub})
        servers.append(ThreadingHTTPServer((HOST, port), kind))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def environment(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The build's environment, which this process also has."""
    variables = {
        "AIRFLOW_URL": f"http://{HOST}:{port}/",
        "AIRFLOW_USERNAME": "jenkins",
        "AIRFLOW_PASSWORD": PASSWORD,
        "BUILD_TAG": RUN,
        "REPORT": str(tmp_path / "report.json"),
        "NO_PROXY": "*",
    }
    for name in ("BUILD_STARTED", "ENTITIES", "SERVICES", "MODE", "DRY_RUN", "DEEP", "RATE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def run(
    environment: dict[str, str],
    port: int,
    serve: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs the client against the stub; returns its exit status and its output."""
    monkeypatch.setattr(trigger_reconcile, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(trigger_reconcile, "_PATIENCE_SECONDS", 2.0)
    handler = signal.getsignal(signal.SIGTERM)
    serve(port)

    def run(**changed: str) -> tuple[int, str]:
        for name, value in changed.items():
            monkeypatch.setenv(name, value)
        try:
            status = main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        printed = capsys.readouterr()
        assert PASSWORD not in printed.out + printed.err
        return status, printed.out + printed.err

    assert environment
    return run


def written(environment: dict[str, str]) -> object:
    return json.loads(Path(environment["REPORT"]).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (("success", "clean"), SUCCESS),
        (("success", "repaired"), SUCCESS),
        (("success", "drift"), DRIFT_LEFT),
        (("failed", "unrepaired"), DRIFT_LEFT),
        (("failed", "clean"), COULD_NOT_RUN),
        (("success", "of another version"), COULD_NOT_RUN),
    ],
)
def test_exit_status_reflects_the_outcome_and_the_report_is_written(
    run: Run, stub: Stub, environment: dict[str, str], ending: tuple[str, str], status: int
) -> None:
    stub.states[-1] = ending[0]
    stub.report = {"outcome": ending[1]}
    assert run()[0] == status
    assert written(environment) == stub.report


def test_parameters_are_passed_on_and_missing_ones_left_to_the_dags_defaults(run: Run, stub: Stub) -> None:
    assert run(BUILD_TAG="a", ENTITIES=" student, course,", MODE="delta", DRY_RUN="true")[0] == SUCCESS
    others = {
        "ENTITIES": " ",
        "MODE": "",
        "DRY_RUN": "",
        "SERVICES": "sb",
        "DEEP": "false",
        "RATE_LIMIT": "500",
    }
    assert run(BUILD_TAG="b", **others)[0] == SUCCESS
    first, second = stub.created
    assert first["conf"] == {"entities": ["student", "course"], "mode": "delta", "dry_run": True}
    assert second["conf"] == {"services": ["sb"], "deep": False, "rate_limit": 500}
    assert first["logical_date"] is None


def test_run_is_named_after_the_build_in_characters_that_airflow_accepts(run: Run, stub: Stub) -> None:
    run(BUILD_TAG="jenkins-Täglich reconcile-12", BUILD_STARTED="1763852400000")
    run(BUILD_TAG="x" * 300 + "-13", BUILD_STARTED="")
    first, second = (created["dag_run_id"] for created in stub.created)
    assert first == "jenkins-T-glich-reconcile-12__1763852400000"
    assert len(second) == 250
    assert second.endswith("x-13")


def test_accepted_request_whose_response_is_lost_does_not_start_a_second_run(run: Run, stub: Stub) -> None:
    stub.after_creation = [None]
    assert run()[0] == SUCCESS
    assert len(stub.created) == 1


def test_repeated_step_resumes_its_run(run: Run, stub: Stub) -> None:
    assert run()[0] == SUCCESS
    assert run()[0] == SUCCESS
    assert len(stub.created) == 1


def test_run_with_the_same_name_but_other_parameters_is_an_error(run: Run, stub: Stub) -> None:
    stub.runs[RUN] = {"conf": {"mode": "full"}, "state": "success"}
    status, printed = run(MODE="delta")
    assert status == COULD_NOT_RUN
    assert f"{RUN} already exists and is not this build's" in printed


def test_requests_are_retried_while_airflow_restarts(run: Run, stub: Stub) -> None:
    stub.failures |= {
        "/auth/token": [None, 502],
        "/api/v2/dags/reconcile": [503],
        RUNS: [500, None],
        f"{RUNS}/{RUN}": [None, 503, 429, 504],
        f"{RUNS}/{RUN}/taskInstances/report/xcomEntries/return_value": [503],
    }
    status, printed = run()
    assert status == SUCCESS
    assert "Airflow is unavailable" in printed
    assert not any(stub.failures.values())
    assert len(stub.created) == 1


def test_expired_token_is_renewed(run: Run, stub: Stub) -> None:
    stub.token_lasts = 3
    assert run()[0] == SUCCESS
    assert stub.logins > 1


def test_token_that_is_never_accepted_is_an_error(run: Run, stub: Stub) -> None:
    stub.token_lasts = 0
    status, printed = run()
    assert status == COULD_NOT_RUN
    assert "401" in printed


def test_wrong_password_fails_without_a_retry_and_is_not_printed(run: Run, stub: Stub) -> None:
    status, printed = run(AIRFLOW_PASSWORD="wr0ng-one")
    assert status == COULD_NOT_RUN
    assert "check the user name and the password" in printed
    assert "wr0ng-one" not in printed
    assert stub.logins == 0


def test_client_gives_up_if_airflow_stays_unavailable(run: Run, stub: Stub, port: int) -> None:
    stub.failures["/api/v2/dags/reconcile"] = [503] * 1000
    status, printed = run()
    assert status == COULD_NOT_RUN
    assert f"cannot complete the reconciliation: http://{HOST}:{port} is unavailable" in printed


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/v2/dags/reconcile", 404, "the DAG reconcile does not exist, or this user cannot see it"),
        (RUNS, 403, f"POST {RUNS} -> 403"),
        (RUNS, 302, f"POST {RUNS} -> 302"),
        (f"{RUNS}/{RUN}", 404, "the DAG run has been deleted"),
    ],
)
def test_rejected_request_is_named_in_the_error(
    run: Run, stub: Stub, path: str, status: int, message: str
) -> None:
    stub.failures[path] = [status]
    code, printed = run()
    assert code == COULD_NOT_RUN
    assert message in printed


def test_paused_dag_is_an_error(run: Run, stub: Stub) -> None:
    stub.paused = True
    status, printed = run()
    assert status == COULD_NOT_RUN
    assert "the DAG reconcile is paused" in printed
    assert stub.created == []


def test_run_that_exceeds_the_timeout_continues_in_airflow(
    run: Run, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.states = ["running"]
    monkeypatch.setattr(trigger_reconcile, "_number", lambda *_: 0.3 / 60)
    status, printed = run()
    assert status == COULD_NOT_RUN
    assert "the DAG run continues: http://" in printed


def test_logs_of_failed_tasks_are_printed_up_to_a_limit(run: Run, stub: Stub) -> None:
    stub.states[-1] = "failed"
    stub.report = None
    stub.failed_tasks = [
        {"task_id": "reconcile_chunk", "map_index": index, "try_number": 2} for index in range(7)
    ]
    status, printed = run()
    assert status == COULD_NOT_RUN
    assert "without a report" in printed
    assert re.findall(r"the log of (\S+):", printed) == [f"reconcile_chunk[{index}]" for index in range(5)]
    assert printed.count("Task failed ValueError: the cause") == 5
    assert printed.count("line 499") == 5
    assert "line 400" not in printed
    assert "::" not in printed
    assert "2 more failed tasks" in printed


def test_unreadable_log_does_not_hide_the_outcome(run: Run, stub: Stub) -> None:
    stub.states[-1] = "failed"
    stub.report = {"outcome": "unrepaired"}
    stub.failed_tasks = [{"task_id": "report", "map_index": -1, "try_number": 1}]
    stub.failures[f"{RUNS}/{RUN}/taskInstances/report/logs/1"] = [404]
    status, printed = run()
    assert status == DRIFT_LEFT
    assert "(cannot read the log: GET" in printed


def test_report_of_an_earlier_build_is_removed(run: Run, stub: Stub, environment: dict[str, str]) -> None:
    Path(environment["REPORT"]).write_text("{}", encoding="utf-8")
    stub.paused = True
    run()
    assert not Path(environment["REPORT"]).exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AIRFLOW_URL", "", "missing environment variables: AIRFLOW_URL"),
        ("AIRFLOW_PASSWORD", "", "missing environment variables: AIRFLOW_PASSWORD"),
        ("AIRFLOW_URL", "airflow:8080", "it must be an http:// or https:// URL"),
        ("AIRFLOW_URL", "http://airflow:port", "it must be an http:// or https:// URL"),
        ("DEEP", "yes", "DEEP is yes; it must be true or false"),
        ("RATE_LIMIT", "-1", "RATE_LIMIT is -1; it must be a positive integer"),
        ("RATE_LIMIT", "0", "RATE_LIMIT is 0; it must be a positive integer"),
        ("TIMEOUT_MINUTES", "1h", "TIMEOUT_MINUTES is 1h; it must be a positive integer"),
    ],
)
def test_invalid_setting_is_named(run: Run, name: str, value: str, message: str) -> None:
    status, printed = run(**{name: value})
    assert status == COULD_NOT_RUN
    assert message in printed


def test_response_that_is_not_from_airflow_is_an_error(run: Run, stub: Stub) -> None:
    stub.failures["/auth/token"] = [int(HTTPStatus.OK)]
    stub.report = None
    status, printed = run()
    assert status == COULD_NOT_RUN
    assert "check AIRFLOW_URL" in printed


def test_aborted_build_exits_and_reports_that_the_run_continues(
    stub: Stub, serve: Callable[[int], None], port: int, environment: dict[str, str]
) -> None:
    stub.states = ["running"]
    serve(port)
    with subprocess.Popen(
        [sys.executable, str(CLIENT)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline(), process.stdout.readline()
        assert first[1].startswith("running"), first
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == STOPPED
    assert f"the DAG run continues: http://{HOST}:{port}/dags/reconcile/runs/{RUN}" in rest
    assert "Traceback" not in rest
