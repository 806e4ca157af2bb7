"""Traces: one from the request that writes a row, over the event, to the apply in each cache.

They are off unless `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector. While they are off, this
imports nothing. The SDK reads all its other variables, such as `OTEL_TRACES_SAMPLER`, by itself.

The context of a trace is in the headers `traceparent` and `tracestate` of the event, as W3C Trace Context and
the CloudEvents extension Distributed Tracing define them.

Source: https://www.w3.org/TR/trace-context/,
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/distributed-tracing.md
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.trace import Span

_log = structlog.get_logger(__name__)

TRACEPARENT: Final = "traceparent"
"""The header without which a message has no trace."""

_HEADERS: Final = frozenset({TRACEPARENT, "tracestate"})
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FIRST_SERVER_ERROR: Final = 500
# What must be propagated of `tracestate`; a client must not make every event larger than that.
_LONGEST_HEADER: Final = 512

Headers = list[tuple[str, str | bytes | None]]


class Traces:
    """Makes the spans of this process.

    Args:
        provider: the tracer provider of OpenTelemetry.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - only if traces are on
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("cachesync")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[None]:
        """Make the span of a request that writes, which continues the trace of the client.

        Args:
            method: the method of the request.
            headers: the headers of the request, with names in lower case.
        """
        given = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if len(value) <= _LONGEST_HEADER
        }
        parent = self._propagator.extract(given)
        kind = self._trace.SpanKind.SERVER
        attributes = {"http.request.method": method}
        with self._tracer.start_as_current_span(method, parent, kind, attributes):
            yield

    def responded(self, method: str, entity: str, status: int) -> None:
        """Note the response of the request whose span is the current one.

        Args:
            method: the method of the request.
            entity: the entity that was written.
            status: the HTTP status of the response.
        """
        span = self._trace.get_current_span()
        span.update_name(f"{method} {entity}")
        span.set_attributes({"http.response.status_code": status, "cachesync.entity": entity})
        if status >= _FIRST_SERVER_ERROR:
            span.set_status(self._trace.StatusCode.ERROR)

    def publishing(self, entity: str, version: int) -> tuple[Span, Headers]:
        """Begin the span of a change that is being published.

        Args:
            entity: the entity of the change.
            version: its row version.

        Returns:
            The span, and the headers that the event needs to continue its trace.
        """
        attributes: dict[str, str | int] = {"cachesync.entity": entity, "cachesync.row_version": version}
        span = self._tracer.start_span(
            f"publish {entity}", kind=self._trace.SpanKind.PRODUCER, attributes=attributes
        )
        headers: dict[str, str] = {}
        self._propagator.inject(headers, self._trace.set_span_in_context(span))
        return span, [(name, value.encode()) for name, value in headers.items()]

    def published(self, span: Span, error: str | None) -> None:
        """End the span of a change that the broker has acknowledged, or that could not be published."""
        if error is not None:
            span.set_status(self._trace.StatusCode.ERROR, error)
        span.end()

    def applied(
        self, service: str, entity: str, headers: Mapping[str, str | bytes | None], started_ns: int
    ) -> None:
        """Make the span of a change that has been applied to a cache, if its event has a trace.

        Args:
            service: the service that owns the cache.
            entity: the entity of the change.
            headers: the headers of the event.
            started_ns: when the stream began to apply it, in nanoseconds since 1970.
        """
        if TRACEPARENT not in headers:
            return
        given = {
            name: value.decode("latin-1")
            for name, value in headers.items()
            if name in _HEADERS and isinstance(value, bytes)
        }
        self._tracer.start_span(
            f"apply {entity} to {service}",
            self._propagator.extract(given),
            self._trace.SpanKind.CONSUMER,
            {"cachesync.entity": entity, "cachesync.service": service},
            start_time=started_ns,
        ).end()

    def flush(self) -> None:
        """Send the spans so far to the collector; blocks until it has responded."""
        flush = getattr(self._provider, "force_flush", None)
        if flush is not None:
            flush()


class _State:
    """What the process has decided, once."""

    lock: Final = threading.Lock()
    is_decided = False
    traces: Traces | None = None


def begin(name: str) -> None:
    """Decide whether this process makes traces.

    A tracer provider that the program has set for OpenTelemetry is used; if there is none, the SDK's is.

    Args:
        name: the name of the process in traces, unless `OTEL_SERVICE_NAME` is set.
    """
    with _State.lock:
        if _State.is_decided:
            return
        _State.is_decided = True
        if not any(os.environ.get(variable) for variable in _ENDPOINTS):
            return
        try:
            _State.traces = Traces(_provider(name))
        except ImportError as error:
            _log.warning("traces are off: install db-cache-sync[traces]", error=str(error))


def traces() -> Traces | None:
    """Return what makes the spans of this process; None if traces are off."""
    return _State.traces


def _provider(name: str) -> Any:
    from opentelemetry import trace  # noqa: PLC0415 - only if traces are on
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own = trace.get_tracer_provider()
    if not isinstance(own, trace.ProxyTracerProvider):
        return own
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: name}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
