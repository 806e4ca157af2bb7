"""Traces are off unless a collector is named, and take little from clients."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider

from cachesync.traces import Traces

TRACE = "0123456789abcdef0123456789abcdef"
PARENT = f"00-{TRACE}-0123456789abcdef-01".encode()

CODE = """
import sys
from cachesync.service import connections, publisher
from cachesync.stream import stream
from cachesync.traces import begin, traces
begin("sa")
# redis-py imports other parts of OpenTelemetry by itself.
print(traces() is not None, "opentelemetry.sdk.trace" in sys.modules)
"""


def state(**environment: str) -> str:
    named = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", CODE]
    return subprocess.check_output(command, env=named | environment, text=True).strip()


def test_tracing_is_neither_on_nor_imported_unless_a_collector_is_named() -> None:
    assert state() == "False False"
    assert state(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") == "True True"


@pytest.mark.parametrize(
    ("parent", "state", "continued", "size"),
    [
        (PARENT, b"one=1", True, 5),
        (PARENT, b",".join(b"k%d=%b" % (n, 200 * b"x") for n in range(4)), True, 0),
        (b"\xff" * 70_000, b"one=1", False, 0),
    ],
    ids=["valid", "large state", "no parent"],
)
def test_event_carries_no_more_of_a_client_than_a_trace(
    parent: bytes, state: bytes, size: int, *, continued: bool
) -> None:
    traces = Traces(TracerProvider())
    with traces.request("PUT", [(b"traceparent", parent), (b"tracestate", state)]):
        _, headers = traces.publishing("student", 1)
    sent = dict(headers)
    assert (TRACE in str(sent["traceparent"])) is continued
    assert len(sent.get("tracestate") or b"") == size
