"""One trace from the request that writes a row to the apply in another service's cache."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from local.kafka import Kafka
    from local.redis import Redis
    from local.service import Service

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Span(NamedTuple):
    process: str
    trace: str
    span: str
    parent: str
    name: str


class Collector(ThreadingHTTPServer):
    """A collector of OTLP over HTTP that keeps the spans."""

    spans: list[Span]

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a process that sends its spans here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in request.resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [
                    Span(
                        named["service.name"],
                        one.trace_id.hex(),
                        one.span_id.hex(),
                        one.parent_span_id.hex(),
                        one.name,
                    )
                    for one in scope.spans
                ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector(("127.0.0.1", 0), _Handler) as server:
        server.spans = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_one_trace_leads_from_the_request_of_a_client_to_the_apply_in_another_cache(
    service_process: Callable[..., AbstractContextManager[Service]],
    collector: Collector,
    kafka: Kafka,
    redis_sb: Redis,
    entities_file: Path,
) -> None:
    environment = {
        **os.environ,
        **collector.settings,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "REDIS_URL": redis_sb.url,
        "CACHESYNC_ENTITIES": str(entities_file),
    }
    command = [sys.executable, "-m", "cachesync", "stream", "--service", "sb"]
    group = f"--group=traces-{secrets.token_hex(4)}"
    stream = subprocess.Popen([*command, group], env=environment, stderr=subprocess.DEVNULL)
    try:
        with service_process("sa", **collector.settings) as sa:
            key = secrets.randbelow(2**31)
            url = f"{sa.url}/students/{key}"
            client = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert httpx.put(url, json={"name": "Ada"}, headers=client).is_success
            names = ["PUT student", "publish student", "apply student to sb"]
            wait_until(lambda: {one.name for one in collector.spans} == set(names), "all spans")
            request, published, applied = sorted(collector.spans, key=lambda one: names.index(one.name))
            assert {one.trace for one in collector.spans} == {TRACE}
            assert request.parent == PARENT
            assert (published.parent, applied.parent) == (request.span, published.span)
            assert (request.process, applied.process) == ("sa", "cachesync")
            # A trace that the service begins. The event of a delete has headers of its own, too.
            assert httpx.delete(url).is_success
            names[0] = "DELETE student"
            wait_until(
                lambda: {one.name for one in collector.spans if one.trace != TRACE} == set(names),
                "all spans of the delete",
            )
            assert len({one.trace for one in collector.spans}) == 2
    finally:
        stream.terminate()
        stream.wait(30)
