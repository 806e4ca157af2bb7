"""The services as processes with real servers: HTTP, logs, metrics, start and shutdown."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import redis

from local.errors import ProcessExitedError
from local.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from local.postgres import Postgres
    from local.redis import Redis
    from local.service import Service

    Run = Callable[..., AbstractContextManager[Service]]

# As in serving/gunicorn_conf.py.
KEEPALIVE_SECONDS = 5

_keys = iter(range(1_000_000, 2_000_000))


@pytest.fixture
def http(sa: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sa.url, timeout=20) as client:
        yield client


@pytest.fixture
def student() -> str:
    """Return the path of a student that no other test uses."""
    return f"/students/{next(_keys)}"


def log_lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log.read_text(encoding="utf-8").splitlines()]


# Reads and writes


def test_first_read_misses_and_later_reads_hit(http: httpx.Client, sb: Service, student: str) -> None:
    created = http.put(student, json={"name": "Ada", "age": 36})
    assert (created.status_code, created.headers["location"]) == (201, student)
    assert http.get(student).headers["x-cache"] == "HIT"
    answers = [httpx.get(sb.url + student) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT"]
    assert {answer.content for answer in answers} == {created.content}
    assert {answer.headers["etag"] for answer in answers} == {created.headers["etag"]}


def test_service_of_another_name_has_slots_of_its_own(
    service_process: Run, redis_sa: Redis, http: httpx.Client, student: str
) -> None:
    http.put(student, json={"name": "Ada"})
    with service_process("billing-eu", like="sa") as billing:
        answers = [httpx.get(billing.url + student) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT"]
    with redis.Redis.from_url(redis_sa.url) as slots:
        assert slots.exists(f"billing-eu:student:{student.rpartition('/')[2]}")


def test_missing_row_is_cached_as_absent_until_it_is_created(http: httpx.Client, student: str) -> None:
    answers = [http.get(student) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT"]
    assert http.put(student, json={"name": "Ada"}).status_code == 201
    assert http.get(student).status_code == 200


def test_if_match_rejects_writes_to_an_outdated_version(http: httpx.Client, student: str) -> None:
    first = http.put(student, json={"name": "Ada"}).headers["etag"]
    second = http.patch(student, json={"age": 36}, headers={"If-Match": first})
    assert (second.status_code, second.json()["age"]) == (200, 36)
    for method, body in (("PUT", {"name": "Grace"}), ("PATCH", {"age": 1}), ("DELETE", None)):
        stale = http.request(method, student, json=body, headers={"If-Match": first})
        assert stale.status_code == 412
    current = {"If-Match": second.headers["etag"]}
    assert http.delete(student, headers=current).status_code == 204
    assert http.delete(student).status_code == 404
    again = http.put(student, json={"name": "Ada"}, headers={"If-None-Match": "*"})
    assert again.status_code == 201
    assert http.put(student, json={"name": "Ada"}, headers={"If-None-Match": "*"}).status_code == 412


def test_client_with_the_current_version_gets_no_body(http: httpx.Client, student: str) -> None:
    tag = http.put(student, json={"name": "Ada"}).headers["etag"]
    answer = http.get(student, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")


def test_numbers_keep_every_digit(http: httpx.Client) -> None:
    exact = "12345678901234567890.123456789012345678901234567890"
    body = f'{{"exact": {exact}, "big": -9223372036854775808, "small": 1.0}}'
    answer = http.post("/every-types", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201
    assert f'"exact":{exact},' in answer.text
    assert '"big":-9223372036854775808,' in answer.text
    assert '"small":1,' in answer.text
    assert '"twice":2' in answer.text


def test_merge_patch_merges_into_json_columns(http: httpx.Client) -> None:
    created = http.post("/every-types", json={"jsonb_": {"a": 1, "b": {"c": 2, "d": 3}}})
    answer = http.patch(created.headers["location"], json={"jsonb_": {"a": None, "b": {"c": 4}}})
    assert answer.json()["jsonb_"] == {"b": {"c": 4, "d": 3}}


@pytest.mark.parametrize("word", ["a/b", "ä ö", "%2F", "?&#", "a\tb", "😀"])
def test_text_key_can_contain_any_character(http: httpx.Client, word: str) -> None:
    location = http.post("/words", json={"word": word}).headers["location"]
    assert http.get(location).json()["word"] == word
    assert http.delete(location).status_code == 204


def test_pages_contain_every_row_once(http: httpx.Client) -> None:
    words = {f"page {number}/" for number in range(7)}
    for word in words:
        http.post("/words", json={"word": word})
    found: list[str] = []
    following: str | None = "/words?limit=3"
    while following is not None:
        page = http.get(following)
        found += [row["word"] for row in page.json()["items"]]
        assert ("link" in page.headers) == (page.json()["next"] is not None)
        following = page.json()["next"]
    assert len(found) == len(set(found))
    assert words <= set(found)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/students", {"id": 1, "name": "Ada", "age": 151}, (422, "constraint-violated", "age")),
        ("/words", {"word": "x", "note": "bad"}, (422, "constraint-violated", "note")),
        ("/words", {"word": "x", "student_id": 1}, (409, "reference-violated", "student_id")),
        ("/words", {"word": "y", "code": "taken"}, (409, "duplicate-row", "code")),
        ("/every-types", {"positive": -1}, (422, "constraint-violated", "positive")),
        ("/every-types", {"day": "2026-02-30"}, (422, "invalid-value", "day")),
        ("/every-types", {"address": "300.0.0.1"}, (422, "invalid-value", "address")),
        ("/every-types", {"money": 999.999}, (422, "invalid-value", "money")),
        ("/every-types", {"uuid_": "x"}, (422, "invalid-value", "uuid_")),
        ("/every-types", {"uuid_": "\0"}, (422, "invalid-text", "uuid_")),
        ("/every-types", {"moment_with_zone": "2026-01-01\0"}, (422, "invalid-text", "moment_with_zone")),
        ("/every-types", {"mood": "furious"}, (422, "invalid-value", "mood")),
        ("/every-types", {"numbers": [1, "x"]}, (422, "invalid-value", "numbers")),
        ("/every-types", {"twice": 4}, (422, "read-only-field", "twice")),
        ("/every-types", {"note": None}, (422, "wrong-type", "note")),
    ],
)
def test_rejection_by_the_database_names_the_field(
    http: httpx.Client, path: str, body: dict[str, object], expected: tuple[int, str, str]
) -> None:
    status, kind, field = expected
    http.put("/words/taken", json={"code": "taken"})
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/problems/{kind}"
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_referenced_row_cannot_be_deleted(http: httpx.Client, student: str) -> None:
    http.put(student, json={"name": "Ada"})
    http.put("/words/refers", json={"student_id": int(student.rpartition("/")[2])})
    answer = http.delete(student)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/reference-violated")
    assert http.get(student).status_code == 200


def test_one_of_several_concurrent_creations_succeeds(sa: Service, student: str) -> None:
    def create(_: int) -> int:
        return httpx.put(sa.url + student, json={"name": "Ada"}, headers={"If-None-Match": "*"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(8))) == [201] + [412] * 7


# Malformed and oversized requests


def exchange(service: Service, request: bytes) -> bytes:
    with socket.create_connection((HOST, service.port), timeout=5) as connection:
        connection.sendall(request)
        return connection.recv(65536)


_POST = b"POST /students HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"GET /students/\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /students/1 HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n", 400),
        (b"GET /students/\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /students?after=\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /students/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /students/" + b"1" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /students/1 HTTP/1.1\r\nHost: x\r\nX: " + b"1" * 20_000 + b"\r\n\r\n", 431),
        (b"TRACE /students HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (_POST + b"Content-Length: -1\r\n\r\n", 400),
        (_POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (_POST + b"Content-Length: 300000\r\n\r\n", 413),
        (_POST + b"Content-Length: 9999999999999999999\r\n\r\n", 413),
        (_POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (_POST + b"Transfer-Encoding: chunked\r\n\r\n50000\r\n" + b" " * 0x50000 + b"\r\n0\r\n\r\n", 413),
        (_POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n", 100),
        (b"GET /students HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", 200),
    ],
)
def test_malformed_or_oversized_request_gets_a_response(sa: Service, request_: bytes, status: int) -> None:
    answer = exchange(sa, request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert not [line for line in log_lines(sa) if line["level"] in {"error", "critical"}]


def test_websocket_handshake_gets_an_ordinary_response(sa: Service) -> None:
    handshake = (
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert exchange(sa, handshake).startswith(b"HTTP/1.1 200 ")


# Logs, metrics, start and shutdown


def test_write_is_logged_with_its_request_id(http: httpx.Client, sa: Service, student: str) -> None:
    http.put(student, json={"name": "Ada"}, headers={"X-Request-ID": "find-me"})
    (line,) = [line for line in log_lines(sa) if line.get("request_id") == "find-me"]
    assert (line["method"], line["path"], line["status"], line["level"]) == ("PUT", student, 201, "info")


def test_reads_of_existing_and_missing_rows_are_not_logged(
    http: httpx.Client, sa: Service, student: str
) -> None:
    http.get(student, headers={"X-Request-ID": "quiet"})
    http.put(student, json={"name": "Ada"})
    http.get(student, headers={"X-Request-ID": "quiet"})
    assert not [line for line in log_lines(sa) if line.get("request_id") == "quiet"]


def test_metrics_cover_all_worker_processes(sb: Service, student: str) -> None:
    for _ in range(40):
        httpx.get(sb.url + student)  # on a new connection, so that both worker processes get some
    pattern = re.compile(
        r'http_request_duration_seconds_count{cache="HIT",entity="student",method="GET",status="4xx"} (\S+)'
    )
    deadline = time.monotonic() + 5
    while (match := pattern.search(httpx.get(sb.metrics_url).text)) is None or float(match[1]) < 39:
        assert time.monotonic() < deadline, match
        time.sleep(0.1)
    assert float(match[1]) == 39


def test_gauges_are_those_of_the_worker_processes_that_live_and_nothing_is_exported_of_other_processes(
    sb: Service, promtool: str
) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", httpx.get(sb.metrics_url).text, re.MULTILINE)
        return float(found[1]) if found else -1

    wait_until(lambda: value("cachesync_pool_limit") == 20)
    starts = value("http_worker_starts_total")
    sb.tree()[0].children()[0].kill()
    wait_until(lambda: value("http_worker_starts_total") == starts + 1)
    wait_until(lambda: value("cachesync_pool_limit") == 20)
    text = httpx.get(sb.metrics_url).text
    exported = set(re.findall(r"^(cachesync_\w+)", text, re.MULTILINE))
    assert "cachesync_hits_total" in exported
    assert not {
        name for name in exported if re.search("backlog|gap|relayed|applied|lag|paused|streams", name)
    }
    check = [promtool, "check", "metrics"]
    done = subprocess.run(check, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_spelling_of_a_key_in_a_path_or_a_body_is_that_of_the_row(
    http: httpx.Client, sb: Service
) -> None:
    path = "/every-keys/a%2F/1.5/2/2026-02-03/12:30:00/2026-02-03T12:30:00Z/sad/true"
    other = "/every-keys/a%2F%20/15e-1/2.00/20260203/12:30/2026-02-03%2014:30:00%2B02/sad/true"
    assert http.get(other).status_code == 404
    assert http.get(path).headers["x-cache"] == "HIT"
    created = http.put(other, json={"note": "first"})
    assert (created.status_code, created.headers["location"]) == (201, path.replace(":", "%3A"))
    row = {
        "code": "a/ ",
        "amount": 1.5,
        "fee": 2.00,
        "day": "2026-02-03",
        "clock": "12:30:00",
        "moment": "2026-02-03T12:30:00+00:00",
        "mood": "sad",
        "flag": True,
        "note": "first",
    }
    assert created.json() == row
    for spelling in (path, other):
        assert http.get(spelling).headers["x-cache"] == "HIT"
        assert httpx.get(sb.url + spelling).json() == row
        # What was read is what can be written.
        assert http.put(spelling, json=row).status_code == 200
    text = json.dumps(row).replace("1.5", "0.150E+1")
    changed = http.patch(
        path, content=text.replace("first", "second"), headers={"Content-Type": "application/json"}
    )
    assert changed.json()["note"] == "second"
    for name, value in {"amount": 1.51, "flag": False, "day": "2026-02-04", "code": "a", "fee": 3}.items():
        refused = http.patch(path, json={name: value})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, name)
    assert http.post("/every-keys", json=row).json()["errors"][0]["field"] == "code"
    for part in ("1.5.", "1e999999", "x", "%00", "%ff", ""):
        assert http.get(path.replace("1.5", part)).status_code == 400
    after = {"after": "a~1/1.5/2/2026-02-03/12:30:00/2026-02-03T12:30:00Z/sad/false"}
    assert http.get("/every-keys", params=after).json()["items"] == [row | {"note": "second"}]
    assert http.delete(other).status_code == 204


def test_row_whose_key_has_two_columns_has_a_path_with_two_segments(http: httpx.Client, sb: Service) -> None:
    student_id = next(_keys)
    path = f"/grades/{student_id}/Art%2FMusic~1"
    assert http.get(path).status_code == 404
    created = http.put(path, json={"points": 40})
    assert (created.status_code, created.headers["location"]) == (201, path)
    row = {
        "student_id": student_id,
        "subject": "Art/Music~1",
        "points": 40,
        "remark": None,
        "certificate": None,
    }
    assert created.json() == row
    assert http.get(path).headers["x-cache"] == "HIT"
    assert httpx.get(sb.url + path).content == created.content
    assert http.patch(path, json={"remark": "late", "subject": "Art/Music~1"}).json()["remark"] == "late"
    assert http.patch(path, json={"subject": "Art"}).json()["errors"][0]["field"] == "subject"
    assert http.post("/grades", json={"student_id": student_id, "subject": "Art/Music~1"}).status_code == 409
    second = http.post("/grades", json={"student_id": student_id, "subject": "B"})
    assert second.headers["location"] == f"/grades/{student_id}/B"
    page = http.get("/grades", params={"after": f"{student_id}/", "limit": 1}).json()
    assert [row["subject"] for row in page["items"]] == ["Art/Music~1"]
    assert page["next"] == f"/grades?after={student_id}%2FArt~1Music~01&limit=1"
    assert http.get(page["next"]).json()["items"][0]["subject"] == "B"
    assert http.delete(path).status_code == 204
    assert http.get(path).status_code == 404


def test_row_is_found_by_a_unique_value_as_soon_as_it_has_it(http: httpx.Client) -> None:
    first, second = next(_keys), next(_keys)
    path, body = f"/grades/by/certificate/c%2F{first}", {"certificate": f"c/{first}"}
    assert http.get(path).status_code == 404
    created = http.put(f"/grades/{first}/Art", json=body)
    assert http.get(path).content == created.content
    assert http.post("/grades", json={"student_id": second, "subject": "Art"} | body).status_code == 409
    assert http.patch(f"/grades/{first}/Art", json={"certificate": None}).status_code == 200
    assert http.get(path).status_code == 404
    moved = http.put(f"/grades/{second}/Art", json=body)
    while (found := http.get(path)).headers["x-cache"] != "HIT":
        pass
    assert (found.content, found.headers["etag"]) == (moved.content, moved.headers["etag"])


def test_metrics_and_rows_have_separate_ports(sb: Service) -> None:
    assert httpx.get(f"{sb.url}/metrics").status_code == 404
    internal = sb.metrics_url.removesuffix("/metrics")
    statuses = {path: httpx.get(internal + path).status_code for path in ("/students", "/health/ready")}
    assert statuses == {"/students": 404, "/health/ready": 200}


def test_request_in_flight_is_finished_before_shutdown(
    service_process: Run, postgres: Postgres, database: str, student: str
) -> None:
    name = database.rpartition("/")[2]
    key = student.rpartition("/")[2]
    with service_process("sa", DB_TIMEOUT_MS="20000") as service, ThreadPoolExecutor(2) as pool:
        assert httpx.put(service.url + student, json={"name": "Ada"}).status_code == 201
        lock = f"BEGIN; SELECT FROM student WHERE id = {key} FOR UPDATE; SELECT pg_sleep(2); COMMIT"
        pool.submit(postgres.sql, lock, name)
        time.sleep(0.5)
        answer = pool.submit(httpx.patch, service.url + student, json={"age": 36}, timeout=20)
        time.sleep(0.5)
        os.kill(service.pid, signal.SIGTERM)
        assert not answer.done()
        assert answer.result().json()["age"] == 36
        wait_until(lambda: not service.running)
        assert [line for line in log_lines(service) if line["level"] in {"error", "critical"}] == []
    # The service was closed, too: it has published its changes and marked them.
    marked = f"SELECT DISTINCT published_at IS NOT NULL FROM cachesync.change_log WHERE key = '{key}'"
    assert postgres.sql(marked, name) == "t"


def received(connection: socket.socket, end: bytes) -> bytes:
    """Return what arrives up to the given end."""
    data = b""
    while not data.endswith(end):
        piece = connection.recv(65536)
        assert piece
        data += piece
    return data


def test_connection_is_closed_when_idle_but_not_during_a_request(sa: Service, student: str) -> None:
    with socket.create_connection((HOST, sa.port), timeout=20) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: sa\r\n\r\n")
        assert b"200 OK" in received(connection, b"}")
        body = b'{"name":"Ada","age":36}'
        head = f"PUT {student} HTTP/1.1\r\nHost: sa\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        time.sleep(KEEPALIVE_SECONDS + 1)
        connection.sendall(body)
        assert b"201 Created" in received(connection, b"}")
        assert connection.recv(65536) == b""


@pytest.mark.parametrize(
    ("changed", "code", "reason"),
    [
        ({"PORT": "http"}, 1, "cannot start: PORT must be an integer"),
        ({"WORKERS": "0"}, 1, "cannot start: WORKERS must be greater than 0"),
        ({"DB_NAME": "postgres"}, 3, '"error":"the database has no schema \'cachesync\''),
        ({"DB_PORT": "1"}, 3, '"error":"127.0.0.1:1/'),
        ({"DB_PASSWORD": "wrong-one"}, 3, '"error":"127.0.0.1:'),
        ({"CACHESYNC_ENTITIES": "/nowhere"}, 3, '"error":"cannot read the entities file /nowhere'),
    ],
)
def test_service_that_cannot_start_reports_the_reason_and_exits(
    service_process: Run, changed: dict[str, str], code: int, reason: str
) -> None:
    with pytest.raises(ProcessExitedError) as caught, service_process("sa", **changed):
        pass
    message = str(caught.value)
    assert f"exited with status {code} " in message
    assert message.count("cannot start") == 1
    assert message.count(reason) == 1
    assert "Traceback" not in message
    assert "wrong-one" not in message


def test_worker_process_that_fails_to_start_does_not_stop_the_others(
    service_process: Run, postgres: Postgres, database: str, student: str
) -> None:
    role = f"{database.rpartition('/')[2]}_sb"
    with service_process("sb", WORKERS="2") as service:
        assert httpx.put(service.url + student, json={"name": "Ada"}).status_code == 201
        postgres.sql(f"ALTER ROLE {role} NOLOGIN")
        try:
            psutil.Process(service.pid).children()[0].kill()
            wait_until(lambda: "cannot start" in service.log.read_text(encoding="utf-8"))
            time.sleep(2)
            assert httpx.get(service.url + student).headers["x-cache"] == "HIT"
        finally:
            postgres.sql(f"ALTER ROLE {role} LOGIN")
        started = starts(service)
        wait_until(lambda: starts(service) > started)
        assert service.running


def test_sighup_lets_a_service_serve_a_new_entity_without_refusing_requests(
    service_process: Run, entities_file: Path, tmp_path: Path, student: str
) -> None:
    complete = entities_file.read_text(encoding="utf-8")
    file = tmp_path / "entities.toml"
    file.write_text(complete.partition("[word]")[0], encoding="utf-8")
    with service_process("sb", CACHESYNC_ENTITIES=str(file)) as service:
        assert httpx.put(service.url + student, json={"name": "Ada"}).status_code == 201
        assert httpx.get(f"{service.url}/words").status_code == 404
        file.write_text(complete, encoding="utf-8")
        os.kill(service.pid, signal.SIGHUP)

        def serves_words() -> bool:
            assert httpx.get(service.url + student).status_code == 200
            return httpx.get(f"{service.url}/words").status_code == 200

        wait_until(serves_words)
        wait_until(lambda: len(psutil.Process(service.pid).children()) == 1)
        assert serves_words()


def starts(service: Service) -> int:
    """Return how many worker processes have started."""
    return [line["event"] for line in log_lines(service)].count("Application startup complete.")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
