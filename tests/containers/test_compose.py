from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from local.settings import REPOSITORY
from tests.containers.conftest import docker

if TYPE_CHECKING:
    from tests.containers.conftest import Compose

pytestmark = pytest.mark.timeout(900)

# Run in the network of the containers. Prints what each address of a name serves, or why it does not.
READ_EACH_ADDRESS = """
import json, socket, sys, urllib.request
served = []
for name, port in json.loads(sys.argv[1]):
    for address in {found[4][0] for found in socket.getaddrinfo(name, port)}:
        try:
            with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as response:
                served.append([name, response.read().decode()])
        except OSError as error:
            served.append([name, str(error)])
print(json.dumps(served))
"""


def follows(compose: Compose, seconds: float) -> bool:
    """Return whether a change made by sa reaches sb's cache within the given time."""
    compose.sa.put("/students/5", json={"name": "Before", "age": 1}).raise_for_status()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        compose.sb.get("/students/5")
        written = compose.sa.put("/students/5", json={"name": "After", "age": time.time_ns() % 100})
        time.sleep(0.5)
        seen = compose.sb.get("/students/5")
        if seen.headers["x-cache"] == "HIT" and seen.headers["etag"] == written.headers["etag"]:
            return True
    return False


def test_demo_succeeds(compose: Compose) -> None:
    assert "0 examined" not in compose("run", "--rm", "-T", "story")


def test_page_is_in_the_navigation_of_airflow_and_reaches_every_part(compose: Compose) -> None:
    assert compose.airflow.get("/cachesync/").status_code == 401
    compose.log_in_to_airflow()
    page = compose.airflow.get("/cachesync/").raise_for_status()
    assert page.headers["content-type"].startswith("text/html")
    plugins = compose.airflow.get("/api/v2/plugins").raise_for_status().json()["plugins"]
    [plugin] = [one for one in plugins if one["name"] == "db_cache_sync"]
    assert [view["name"] for view in plugin["external_views"]] == ["Caches"]
    status = compose.airflow.get("/cachesync/api/status").raise_for_status().json()
    assert status["unavailable"] == {}
    assert status["live_check_at"] is not None


def test_doctor_warns_only_of_the_single_broker(compose: Compose) -> None:
    findings = compose("run", "--rm", "-T", "cachesync", "doctor").splitlines()
    [warning] = [line for line in findings if line.startswith(("error", "warning"))]
    assert warning.startswith("warning  Kafka, replication: ")


def test_metrics_are_served_to_prometheus(compose: Compose) -> None:
    configuration = yaml.safe_load((REPOSITORY / "compose" / "prometheus.yml").read_text())
    lookups = [lookup for job in configuration["scrape_configs"] for lookup in job["dns_sd_configs"]]
    names = json.dumps([(name, lookup["port"]) for lookup in lookups for name in lookup["names"]])
    program = ("--entrypoint", "python", "cachesync", "-c", READ_EACH_ADDRESS, names)
    served: list[tuple[str, str]] = json.loads(compose("run", "--rm", "-T", *program))
    services = [name for name, text in served if "\nhttp_request_duration_seconds_count{" in text]
    assert sorted(services) == ["sa", "sb", "sb"]
    # One of the triggerers can have all the work.
    work = "".join(text for name, text in served if name == "airflow-triggerer")
    for metric in ("streams", "backlog", "live_check_redis_usable"):
        assert f"\ncachesync_{metric}" in work


def test_either_replica_responds_while_the_other_is_paused(compose: Compose) -> None:
    containers = compose.containers("sb")
    assert len(containers) == 2
    for paused in containers:
        docker("pause", paused)
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    if compose.sb.get("/health/ready", timeout=2).is_success:
                        break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
        finally:
            docker("unpause", paused)
        time.sleep(3)


def test_each_triggerer_takes_over_when_the_other_is_killed(compose: Compose) -> None:
    containers = compose.containers("airflow-triggerer")
    assert len(containers) == 2
    assert follows(compose, 60)
    for killed in containers:
        docker("kill", killed)
        assert follows(compose, 60)
        docker("start", killed)
        time.sleep(15)


def test_service_can_write_only_temporary_files(compose: Compose) -> None:
    container = compose.containers("sa")[0]
    attempt = "touch /tmp/it && ! touch /app/it /opt/venv/it /it /var/tmp/it 2>/dev/null && echo refused"
    assert docker("exec", container, "sh", "-c", attempt) == "refused"
    state = json.loads(docker("inspect", container))[0]
    assert state["HostConfig"]["ReadonlyRootfs"]
    assert state["HostConfig"]["CapDrop"] == ["ALL"]
    assert state["State"]["Health"]["Status"] == "healthy"


def test_request_in_flight_is_answered_when_a_service_is_stopped(compose: Compose) -> None:
    container = compose.containers("sa")[0]
    body = json.dumps({"name": "Late", "age": 1}).encode()
    url = compose.sa.base_url
    head = f"PUT /students/6 HTTP/1.1\r\nHost: sa\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with ThreadPoolExecutor() as pool:
        with socket.create_connection((url.host, url.port or 80), timeout=10) as client:
            client.sendall(head.encode() + body[:5])
            time.sleep(0.5)
            stop = pool.submit(docker, "stop", "--time", "35", container)
            time.sleep(2)
            assert not stop.done()
            client.sendall(body[5:])
            answer = client.recv(65536)
            answered = time.monotonic()
        assert answer.split()[1] in {b"200", b"201"}
        stop.result()
    assert time.monotonic() - answered < 10
    assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    docker("start", container)
    compose.until_sa_is_ready()


def test_no_data_is_lost_when_all_containers_are_recreated(compose: Compose) -> None:
    written = compose.sa.put("/students/7", json={"name": "Kept", "age": 7}).raise_for_status()
    compose("down", "--timeout", "40")
    compose("up", "--detach", "sa")
    compose.until_sa_is_ready()
    seen = compose.sa.get("/students/7")
    assert seen.headers["etag"] == written.headers["etag"]
    assert "created: none; all topics already exist" in compose("logs", "topics")
