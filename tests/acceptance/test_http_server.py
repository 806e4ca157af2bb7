"""The HTTP server of a service: malformed requests, and clients that take too long or too much."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from local.ports import HOST
from tests.acceptance import raw_requests
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from local.service import Service

    Run = Callable[..., AbstractContextManager[Service]]

LIMIT = 40
SECONDS = 1.0


@pytest.fixture(scope="module")
def http(sa: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sa.url, timeout=20) as client:
        for path in (raw_requests.VICTIM, "/students/7"):
            assert client.put(path, json={"name": "Ada"}).is_success
        yield client


@pytest.mark.parametrize("case", raw_requests.CASES, ids=lambda case: case.name)
def test_raw_request(sa: Service, http: httpx.Client, case: raw_requests.Case) -> None:
    result = raw_requests.run(case, HOST, sa.port)
    assert result.answers(case), result
    if case.accepted is None:
        assert json.loads(result.bodies[0])["status"] == result.statuses[0]
        assert http.get("/students/7").json()["name"] == "Ada"
    assert http.get(raw_requests.VICTIM).status_code == 200
    assert '"level":"error"' not in sa.log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def strict(service_process: Run) -> Iterator[Service]:
    """A service with small limits."""
    limits = {
        "CLIENT_TIMEOUT_MS": str(round(1000 * SECONDS)),
        "CONNECTION_LIMIT": str(LIMIT),
        "BODY_LIMIT": "2000000",
    }
    with service_process("sa", **limits) as running:
        yield running


def connect(service: Service) -> socket.socket:
    return socket.create_connection((HOST, service.port), timeout=30)


def everything_from(connection: socket.socket) -> bytes:
    """Return what arrives until the service closes the connection."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def is_closed(connection: socket.socket) -> bool:
    """Return whether the service has closed a connection on which it has sent nothing."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def is_open(service: Service, client: tuple[str, int]) -> bool:
    """Return whether the service has a connection to the client."""
    [worker] = psutil.Process(service.pid).children()
    return client in [tuple(each.raddr) for each in worker.net_connections("tcp")]


HEAD = b"PUT /students/7 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"\r\n", 408),
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: ", 408),
        (HEAD, 408),
        (HEAD + b'{"name":', 408),
    ],
)
def test_client_that_stops_in_a_request_is_disconnected(
    strict: Service, sent: bytes, status: int | None
) -> None:
    with connect(strict) as connection:
        connection.sendall(sent)
        answer = everything_from(connection)
    assert answer.startswith(b"HTTP/1.1 %d " % status) if status else answer == b""


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: x\r\nX: ", HEAD])
def test_client_that_sends_byte_by_byte_is_disconnected(strict: Service, sent: bytes) -> None:
    """A byte now and then does not extend the time."""
    with connect(strict) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        connection.settimeout(0.1)
        while True:
            try:
                connection.sendall(b" ")
                if b"HTTP/1.1 408 " in connection.recv(65536):
                    break
            except TimeoutError:
                assert time.monotonic() - began < 30 * SECONDS


def test_client_that_does_not_read_its_responses_is_disconnected(strict: Service) -> None:
    text = "x" * 400_000
    location = httpx.post(f"{strict.url}/every-types", json={"jsonb_": {"text": text}}).headers["location"]
    with socket.socket() as connection:
        # Otherwise, the kernels' buffers would hold all responses.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.settimeout(30)
        connection.connect((HOST, strict.port))
        connection.sendall(f"GET {location} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 50)
        connection.recv(1, socket.MSG_PEEK)
        address = connection.getsockname()
        wait_until(lambda: not is_open(strict, address), "the service has closed the connection")
        assert len(everything_from(connection)) < 50 * len(text)
    assert '"level":"error"' not in strict.log.read_text(encoding="utf-8")


def test_idle_connections_make_way_for_new_ones(strict: Service) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(strict)) for _ in range(LIMIT)]
        for connection in idle:
            connection.sendall(raw_requests.LIVE)
            assert b"200 OK" in connection.recv(65536)
        wait_until(
            lambda: httpx.get(f"{strict.url}/students", timeout=20).is_success, "a new connection is served"
        )


def test_health_checks_are_answered_while_all_connections_are_in_use(strict: Service) -> None:
    with ExitStack() as stack:
        for _ in range(LIMIT):
            busy = stack.enter_context(connect(strict))
            busy.sendall(HEAD)
        refused = httpx.get(f"{strict.url}/students/7")
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/overloaded")
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(f"{strict.url}/health/live").status_code == 200
        assert httpx.get(strict.metrics_url).status_code == 200
        head = raw_requests.Case("HEAD", b"HEAD /students/7 HTTP/1.1\r\nHost: x\r\n\r\n", (503,))
        assert raw_requests.run(head, HOST, strict.port).answers(head)


def test_clients_that_send_bodies_slowly_do_not_stop_the_writes(sa: Service) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(sa)).sendall(HEAD)
        with httpx.Client(base_url=sa.url, timeout=20) as client:
            for _ in range(20):
                assert client.put("/students/8", json={"name": "Ada"}).is_success
                time.sleep(0.05)  # the limit adapts every 0.1 s


def test_clients_that_do_not_read_their_responses_do_not_stop_the_reads(service_process: Run) -> None:
    with service_process("sa", CLIENT_TIMEOUT_MS="60000") as patient, ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=patient.url, timeout=20))
        row = client.post("/every-types", json={"jsonb_": {"text": "x" * 200_000}}).headers["location"]
        for _ in range(50):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((HOST, patient.port))
            connection.sendall(f"GET {row} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 90)

        def is_served_for_a_second() -> bool:
            for _ in range(20):
                if client.get("/students/12").status_code == 503:
                    return False
                time.sleep(0.05)
            return True

        # The responses that fit into the kernel's buffers are work like any other.
        wait_until(is_served_for_a_second, "the other reads are answered", seconds=50)


def test_clients_with_unfinished_bodies_are_disconnected_before_they_fill_the_memory(sa: Service) -> None:
    head = HEAD.replace(b"Content-Length: 14", b"Content-Length: 262144")
    [worker] = psutil.Process(sa.pid).children()
    before = worker.memory_info().rss
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(sa)) for _ in range(900)]
        for connection in slow:
            connection.sendall(head + b" " * 260_000)

        def held() -> int:
            """Return how many bytes the bodies of the open connections have."""
            return 260_000 * sum(not is_closed(connection) for connection in slow)

        wait_until(lambda: held() <= 2**25, "the bodies take at most 32 MiB")
        assert httpx.put(f"{sa.url}/students/8", json={"name": "Ada"}, timeout=20).is_success
        # Without a limit, the bodies would take 230 MB.
        assert worker.memory_info().rss - before < 120 * 2**20
