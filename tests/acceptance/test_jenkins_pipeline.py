"""The Jenkinsfile, built by a stand-in for Jenkins against a running Airflow."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from trigger_reconcile import COULD_NOT_RUN

from cachesync.value import encode_value
from local.postgres import run_sql
from tests.acceptance.jenkins.jenkins import JENKINSFILE, Build, Jenkins
from tests.integration.refusals import refusing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from local.system import System

CLIENT = JENKINSFILE.with_name("trigger_reconcile.py")
AHEAD = encode_value(10**18, b"abcdef01", b"{}")
WRONG = "wr0ng-passw0rd"


@pytest.fixture(scope="module")
def jenkins(system: System, tmp_path_factory: pytest.TempPathFactory) -> Jenkins:
    return Jenkins(tmp_path_factory.mktemp("jenkins"), system.airflow.url, system.airflow.jenkins_username)


@pytest.fixture(scope="module")
def refused(jenkins: Jenkins) -> Build:
    """A build with a wrong password, in a workspace with an earlier build's report and a broken venv."""
    (jenkins.workspace / "report.json").write_text("{}")
    programs = jenkins.workspace / ".venv-jenkins-job" / "bin"
    programs.mkdir(parents=True)
    (programs / "python3").symlink_to("/nowhere/python3")
    (programs / "python").symlink_to("python3")
    return jenkins.build(new_tag(), WRONG, parameters={})


@pytest.fixture
def ahead(system: System, slots: redis.Redis) -> Iterator[str]:
    """The name of a slot of sb that is ahead of its row."""
    key = secrets.randbelow(10**9) + 10**9
    run_sql(system.dsn, "INSERT INTO student (id, name) VALUES (:key, 'Ann')", key=str(key))
    name = f"sb:student:{key}"
    slots.set(name, AHEAD)
    yield name
    slots.delete(name)


def new_tag() -> str:
    return f"jenkins-reconcile-{secrets.token_hex(4)}"


def report_of(build: Build) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(build.artifacts["report.json"])
    return report


def assert_shows_no_secret(build: Build, password: str) -> None:
    visible = build.log + "".join(build.artifacts.values())
    assert "+ .venv-jenkins-job/bin/python jenkins-job/trigger_reconcile.py" in visible  # echoed by `sh -x`
    assert password not in visible
    assert "eyJ" not in visible  # the beginning of a JWT


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """Collect all command lines that appear in the process list during the block."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            for process in psutil.process_iter(["cmdline"]):
                seen.add(" ".join(process.info["cmdline"] or ()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_job_runs_daily_with_parameters_a_timeout_and_one_build_at_a_time(refused: Build) -> None:
    assert list(refused.inside("triggers")) == [("cron", ["H H * * *"])]
    options = dict(refused.inside("options"))
    assert options["timeout"] == [{"time": 150, "unit": "MINUTES"}]
    assert "disableConcurrentBuilds" in options
    parameters = {one["name"]: (kind, one) for kind, (one,) in refused.inside("parameters")}
    assert {name: kind for name, (kind, _) in parameters.items()} == {
        "ENTITIES": "string",
        "SERVICES": "string",
        "MODE": "choice",
        "DRY_RUN": "booleanParam",
        "DEEP": "booleanParam",
        "RATE_LIMIT": "string",
    }
    assert parameters["MODE"][1]["choices"] == ["full", "delta"]
    assert not any(one.get("defaultValue") for _, one in parameters.values())


def test_wrong_password_fails_the_build_without_a_report(refused: Build) -> None:
    assert (refused.result, refused.description) == ("FAILURE", "Could not run")
    assert "check the user name and the password" in refused.log
    assert refused.artifacts == {}
    assert_shows_no_secret(refused, WRONG)


def test_build_repairs_drift_while_airflow_restarts_without_exposing_the_password(
    system: System, jenkins: Jenkins, dag: httpx.Client, slots: redis.Redis, ahead: str
) -> None:
    airflow = system.airflow
    tag = new_tag()

    def restart_airflow(line: str, _: Callable[[], None]) -> None:
        if line.startswith("DAG run accepted with"):
            airflow.api_server.kill()
        elif line.startswith("Airflow is unavailable") and not airflow.api_server.running:
            airflow.api_server.start()
            airflow.scheduler.thaw()

    parameters: dict[str, str | bool] = {"SERVICES": " sb ", "ENTITIES": "student"}
    # The run must not end before the restart, nor use up its tasks' retries while the API is unavailable.
    airflow.scheduler.freeze()
    try:
        with command_lines() as seen:
            build = jenkins.build(tag, airflow.jenkins_password, parameters=parameters, watch=restart_airflow)
    finally:
        airflow.api_server.start()
        airflow.scheduler.thaw()
    assert (build.result, build.description) == ("SUCCESS", None), build.log
    assert "Airflow is unavailable" in build.log
    report = report_of(build)
    assert (report["run"], report["outcome"]) == (jenkins.run_id(tag), "repaired")
    assert report["samples"]["ahead"] == [ahead]
    assert not slots.exists(ahead)
    assert dag.get(f"/dagRuns/{report['run']}").json()["conf"] == {
        "services": ["sb"],
        "entities": ["student"],
        "mode": "full",
        "dry_run": False,
        "deep": False,
    }

    assert_shows_no_secret(build, airflow.jenkins_password)
    assert any("jenkins-job/trigger_reconcile.py" in line for line in seen)
    assert not any(airflow.jenkins_password in line for line in seen)
    assert airflow.jenkins_password not in airflow.api_server.log.read_text()


def test_aborted_build_resumes_its_run_when_repeated_and_is_unstable_if_a_dry_run_finds_drift(
    system: System, jenkins: Jenkins, dag: httpx.Client, slots: redis.Redis, ahead: str
) -> None:
    password = system.airflow.jenkins_password
    parameters: dict[str, str | bool] = {"SERVICES": "sb", "DRY_RUN": True}
    tag = new_tag()

    def abort(line: str, abort: Callable[[], None]) -> None:
        if line.startswith("DAG run accepted with"):
            abort()

    aborted = jenkins.build(tag, password, parameters=parameters, watch=abort)
    assert aborted.result == "ABORTED", aborted.log
    assert aborted.description == "Aborted; a DAG run that has started continues in Airflow"
    assert f"the DAG run continues: {system.airflow.url}" in aborted.log
    assert aborted.artifacts == {}

    build = jenkins.build(tag, password, parameters=parameters)
    assert (build.result, build.description) == ("UNSTABLE", "Drift found by a dry run"), build.log
    report = report_of(build)
    assert (report["run"], report["outcome"]) == (jenkins.run_id(tag), "drift")
    assert report["samples"]["ahead"] == [ahead]
    assert slots.get(ahead) == AHEAD
    runs = dag.get("/dagRuns", params={"run_id_pattern": tag}).json()["dag_runs"]
    assert [run["dag_run_id"] for run in runs] == [jenkins.run_id(tag)]
    assert_shows_no_secret(build, password)


def test_build_fails_with_a_report_if_drift_cannot_be_repaired(
    system: System, jenkins: Jenkins, dag: httpx.Client, slots: redis.Redis
) -> None:
    assert dag
    password = system.airflow.jenkins_password
    name = f"sb:student:{secrets.randbelow(10**9) + 10**9}"
    slots.set(name, "not a slot")
    with refusing(slots, "no deletes"):
        build = jenkins.build(new_tag(), password, parameters={"SERVICES": "sb"})
    slots.delete(name)
    assert (build.result, build.description) == ("FAILURE", "Unrepaired drift"), build.log
    report = report_of(build)
    assert (report["outcome"], report["samples"]["failed"]) == ("unrepaired", [name])
    assert "--- last lines of the log of report:" in build.log
    assert_shows_no_secret(build, password)


def test_rejected_parameter_is_reported_with_airflows_response(system: System) -> None:
    environment = {
        "AIRFLOW_URL": system.airflow.url,
        "AIRFLOW_USERNAME": system.airflow.jenkins_username,
        "AIRFLOW_PASSWORD": system.airflow.jenkins_password,
        "BUILD_TAG": new_tag(),
        "SERVICES": "nobody",
    }
    command = [sys.executable, str(CLIENT)]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert ended.returncode == COULD_NOT_RUN
    assert "cannot complete the reconciliation: POST /api/v2/dags/reconcile/dagRuns -> 400" in ended.stderr
    assert "nobody" in ended.stderr


def test_jenkins_user_can_only_start_and_view_this_dag(
    system: System, log_in: Callable[[str, str], httpx.Client], dag: httpx.Client
) -> None:
    run = dag.get("/dagRuns", params={"limit": 1}).json()["dag_runs"][0]["dag_run_id"]
    of_run = f"/api/v2/dags/reconcile/dagRuns/{run}"
    jenkins = log_in(system.airflow.jenkins_username, system.airflow.jenkins_password)
    assert jenkins.get(of_run).is_success
    assert [one["dag_id"] for one in jenkins.get("/api/v2/dags").json()["dags"]] == ["reconcile"]
    trigger = {"logical_date": None}
    for method, path, body in (
        ("GET", "/api/v2/connections", None),
        ("POST", "/api/v2/connections", {"connection_id": "mine", "conn_type": "http"}),
        ("GET", "/api/v2/variables", None),
        ("POST", "/api/v2/variables", {"key": "mine", "value": "1"}),
        ("GET", "/api/v2/config", None),
        ("GET", "/api/v2/dags/cache_sync", None),
        ("GET", "/api/v2/dags/cache_sync/dagRuns", None),
        ("POST", "/api/v2/dags/cache_sync/dagRuns", trigger),
        ("PATCH", "/api/v2/dags/cache_sync", {"is_paused": True}),
        ("DELETE", "/api/v2/dags/reconcile", None),
        ("PATCH", of_run, {"state": "failed"}),
        ("POST", f"{of_run}/clear", {"dry_run": True}),
        ("DELETE", of_run, None),
    ):
        answer = jenkins.request(method, path, json=body)
        assert answer.status_code == httpx.codes.FORBIDDEN, (method, path, answer.text)
