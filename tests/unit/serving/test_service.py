"""Health, metrics, OpenAPI document and lifecycle of a service, on the stand-in for the library."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import jsonschema_rs
import orjson
import pytest
import structlog
from falcon.testing import ASGIConductor
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

from cachesync.entity import Entity
from cachesync.errors import DatabaseUnavailableError, NotInstalledError
from serving import logs
from serving.app import create_app
from serving.worker import Worker
from tests.unit.serving.stand_in import (
    STUDENT,
    WORD,
    MemoryService,
    app_on,
    column,
    http_scope,
    served,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cachesync.service.service import Service
    from serving.app import App
    from serving.request import Message, Receive
    from serving.settings import Settings


async def test_process_reports_that_it_is_live(client: ASGIConductor) -> None:
    answer = await client.simulate_get("/health/live")
    assert (answer.status_code, answer.json) == (200, {"status": "live"})


async def test_service_is_ready_without_redis_and_kafka(
    client: ASGIConductor, service: MemoryService
) -> None:
    service.parts = {"postgresql": True, "redis": False, "kafka": False}
    answer = await client.simulate_get("/health/ready")
    assert (answer.status_code, answer.json) == (200, {"status": "ready", **service.parts})


async def test_ready_names_the_entities_whose_tables_are_not_as_they_were_installed(
    client: ASGIConductor, service: MemoryService
) -> None:
    service.not_installed = {"word": "entity 'word': its trigger is disabled; run `cachesync install`"}
    answer = await client.simulate_get("/health/ready")
    assert (answer.status_code, answer.json["entities"]) == (200, service.not_installed)


async def test_columns_that_change_while_the_service_runs_are_validated_and_documented(
    client: ASGIConductor, service: MemoryService
) -> None:
    row = {"id": 1, "name": "Ann", "nickname": "A"}
    assert (await client.simulate_post("/students", json=row)).status_code == 422
    service.student.columns = (*STUDENT, column("nickname", "text", "S"))
    assert (await client.simulate_post("/students", json=row)).status_code == 201
    document = (await client.simulate_get("/openapi.json")).json
    assert "nickname" in document["components"]["schemas"]["student"]["properties"]


async def test_table_that_is_not_as_it_was_installed_is_a_503_that_says_what_to_run(
    client: ASGIConductor, service: MemoryService
) -> None:
    service.student.fails = NotInstalledError("its trigger is disabled; run `cachesync install`")
    answer = await client.simulate_get("/students/1")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answer.json["type"] == "/problems/not-installed"
    assert answer.json["detail"] == "its trigger is disabled; run `cachesync install`"


async def test_service_is_not_ready_without_postgresql(client: ASGIConductor, service: MemoryService) -> None:
    service.parts = {"postgresql": False, "redis": True, "kafka": True}
    answer = await client.simulate_get("/health/ready")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["type"] == "/problems/not-ready"
    assert service.parts.items() <= answer.json.items()


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json"])
async def test_resources_of_the_service_support_head(client: ASGIConductor, path: str) -> None:
    assert (await client.simulate_head(path)).status_code == 200


async def test_metrics_are_served_as_text(
    internal: ASGIConductor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    answer = await internal.simulate_get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/%6Detrics"])
async def test_main_port_does_not_serve_metrics(client: ASGIConductor, path: str) -> None:
    answer = await client.simulate_get(path)
    assert (answer.status_code, answer.json["type"]) == (404, "/problems/not-found")


@pytest.mark.parametrize("path", ["/students", "/students/1", "/openapi.json"])
async def test_metrics_port_serves_only_metrics_and_health(internal: ASGIConductor, path: str) -> None:
    answer = await internal.simulate_get(path)
    assert (answer.status_code, answer.json["type"]) == (404, "/problems/not-found")
    assert (await internal.simulate_get("/health/live")).status_code == 200
    assert (await internal.simulate_get("/health/ready")).status_code == 200


async def test_openapi_document_describes_every_path(client: ASGIConductor) -> None:
    document = (await client.simulate_get("/openapi.json")).json
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        *("/health/live", "/health/ready", "/openapi.json"),
        *("/students", "/students/{key}", "/words", "/words/{key}", "/things", "/things/{key}"),
        *("/lines", "/lines/{product}/{line}"),
        *("/students/by/name/{value_1}", "/students/by/name,age/{value_1}/{value_2}"),
        "/lines/by/amount/{value_1}",
    }
    assert [
        (parameter["name"], parameter["schema"]["type"])
        for parameter in document["paths"]["/lines/{product}/{line}"]["parameters"]
    ] == [("product", "string"), ("line", "integer")]
    assert set(document["paths"]["/students/{key}"]) == {
        *("parameters", "get", "head", "put", "patch", "delete")
    }


async def test_openapi_schemas_and_examples_are_valid(client: ASGIConductor) -> None:
    document = (await client.simulate_get("/openapi.json")).json
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        assert "$ref" not in str(schema), name

    def bodies(part: Any) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            if "schema" in part and {"example", "examples"} & set(part):
                yield part
            for value in part.values():
                yield from bodies(value)

    found = list(bodies(document["paths"]))
    assert len(found) > 50
    for body in found:
        schema = {**body["schema"], "components": document["components"]}
        examples = [example["value"] for example in body.get("examples", {}).values()]
        for example in [body["example"]] if "example" in body else examples:
            jsonschema_rs.validate(schema, example)


async def test_openapi_document_can_contain_integers_of_any_size(service: MemoryService) -> None:
    service.word.columns = tuple(
        replace(column, precision=40) if column.name == "score" else column for column in WORD
    )
    async with ASGIConductor(served(app_on(service))) as client:
        document = (await client.simulate_get("/openapi.json")).json
    assert document["components"]["schemas"]["word"]["properties"]["score"]["exclusiveMaximum"] == 10**38


async def test_service_is_closed_after_the_last_request() -> None:
    service = MemoryService()
    async with ASGIConductor(served(app_on(service))) as client:
        await client.simulate_get("/students/1")
        assert not service.closed
    assert service.closed


async def start(app: App) -> tuple[list[dict[str, Any]], str | None]:
    """Start an application that cannot start; return its events and the error in the only log entry."""
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    await events.put({"type": "lifespan.startup"})
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    with structlog.testing.capture_logs() as lines:
        await app(scope, events.get, send)
    (line,) = lines
    assert (line["log_level"], line["event"]) == ("critical", "cannot start")
    return sent, line.get("error")


# Without Falcon's message, which is a traceback: the reason is in the log already.
FAILED = [{"type": "lifespan.startup.failed"}]


@pytest.mark.parametrize(
    "error",
    [
        NotInstalledError("run `cachesync install`"),
        DatabaseUnavailableError("no response"),
        RuntimeError("a bug"),
    ],
)
async def test_service_that_cannot_start_logs_the_reason(error: Exception) -> None:
    async def fail(_settings: Settings) -> Service:
        raise error

    reason = None if isinstance(error, RuntimeError) else str(error)
    assert await start(create_app(settings(), fail)) == (FAILED, reason)


@pytest.mark.parametrize(
    ("error", "replaces_another", "code"),
    [
        (NotInstalledError("run `cachesync install`"), False, 3),
        (NotInstalledError("run `cachesync install`"), True, 1),
        (DatabaseUnavailableError("no response"), False, 3),
        (DatabaseUnavailableError("no response"), True, 1),
        (RuntimeError("a bug"), True, 3),
    ],
)
async def test_gunicorn_keeps_replacing_a_process_that_cannot_start_only_if_its_predecessor_could(
    error: Exception,
    replaces_another: bool,  # noqa: FBT001 - pytest passes it by name
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serve(_: Worker) -> None:
        raise SystemExit(3)

    monkeypatch.setattr("serving.worker._RESTART_PAUSE_SECONDS", 0)
    monkeypatch.setattr(UvicornWorker, "_serve", serve)
    worker = Worker.__new__(Worker)
    worker.wsgi = create_app(settings())
    worker.wsgi.start_error = error
    worker.replaces_another = replaces_another
    with pytest.raises(SystemExit) as caught:
        await worker._serve()  # noqa: SLF001 - uvicorn-worker calls it
    assert caught.value.code == code


async def test_entity_cannot_use_a_path_of_the_service_itself() -> None:
    service = MemoryService()
    taken = service.word.entity.model_dump() | {"path": "/openapi.json", "ttl": "1h", "absent_ttl": "1m"}
    service.word.entity = Entity.model_validate(taken)
    reason = "entity 'word' cannot use the path /openapi.json, which the service itself uses"
    assert await start(app_on(service)) == (FAILED, reason)


async def answer_to(
    app: App, method: str, headers: dict[str, str], received: list[dict[str, Any]] | Receive
) -> list[dict[str, Any]]:
    """Return the messages that the application sends.

    Args:
        app: the application.
        method: the method of the request.
        headers: its headers.
        received: the messages that the application receives before the client disconnects, or what to call.
    """
    sent: list[dict[str, Any]] = []

    async def receive() -> Message:
        if not isinstance(received, list):
            return await received()
        return received.pop(0) if received else {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        sent.append(event)

    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = http_scope(method, "/students", given)
    async with ASGIConductor(app):
        await app(scope, cast("Any", receive), cast("Any", send))
    return sent


JSON = {"content-type": "application/json"}


async def test_body_that_never_arrives_returns_408(service: MemoryService) -> None:
    events = [{"type": "http.request", "body": b'{"id": 1}', "more_body": True}]
    sent = await answer_to(app_on(service), "POST", JSON | {"content-length": "30"}, events)
    assert sent[0]["status"] == 408
    assert orjson.loads(sent[1]["body"])["type"] == "/problems/request-timeout"


async def test_body_whose_connection_is_closed_is_not_taken_for_a_whole_one(service: MemoryService) -> None:
    row = b'{"id": 1, "name": "Ada"}'
    events = [{"type": "http.request", "body": row, "more_body": True}]
    sent = await answer_to(app_on(service), "POST", JSON | {"transfer-encoding": "chunked"}, events)
    assert sent[0]["status"] == 408
    assert service.student.given == []


async def test_body_that_takes_too_long_returns_408(service: MemoryService) -> None:
    app = app_on(service, client_timeout_ms=50)

    async def silence() -> dict[str, Any]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    sent = await answer_to(app, "POST", JSON | {"content-length": "30"}, silence)
    assert sent[0]["status"] == 408
    assert orjson.loads(sent[1]["body"])["detail"] == "the body did not arrive within 0.05 s"


async def test_body_is_received_only_if_it_is_wanted(service: MemoryService) -> None:
    """The server sends 100 Continue when the application receives the body."""
    body = b'{"id": 1, "name": "Ada"}'
    for length, status, remaining in ((str(len(body)), 201, 0), ("5000", 413, 1)):
        events = [{"type": "http.request", "body": body, "more_body": False}]
        sent = await answer_to(app_on(service), "POST", JSON | {"content-length": length}, events)
        assert (sent[0]["status"], len(events)) == (status, remaining)


async def test_response_does_not_wait_for_a_body_that_is_not_read(service: MemoryService) -> None:
    sent = await answer_to(app_on(service), "GET", {"content-length": "30"}, [])
    assert sent[0]["status"] == 200
    sent = await answer_to(app_on(service), "PUT", {"content-length": "30"}, [])
    assert sent[0]["status"] == 405


def test_logs_have_one_json_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.root.handlers, logging.root.level
    try:
        logs.configure(logging.INFO)
        structlog.stdlib.get_logger("a").info("one", text="\ud800\n", number=1)
        logging.getLogger("b").warning("two %s", "words")
        logging.getLogger("b").error("three", exc_info=ValueError("bad"))
    finally:
        logging.root.handlers, logging.root.level = root
        structlog.reset_defaults()
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"].strip("'") for line in lines] == ["one", "two words", "three"]
    assert "ValueError: bad" in lines[2]["exception"]
    assert all({"level", "logger", "timestamp"} <= set(line) for line in lines)
