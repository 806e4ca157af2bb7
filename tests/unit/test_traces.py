"""Traces are off unless a collector is named."""

from __future__ import annotations

import os
import subprocess
import sys

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
