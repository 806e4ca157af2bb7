"""The Falcon application of both services: the entities of the entities file over HTTP."""

from __future__ import annotations

import asyncio
import gc
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, NoReturn

import falcon.asgi
import structlog
from falcon.asgi import Response
from falcon.routing import CompiledRouter

from cachesync.entity import LOOKUP_PATH
from cachesync.errors import CacheSyncError, DeclarationError
from cachesync.service.service import Service
from cachesync.traces import begin as begin_traces
from cachesync.traces import traces
from serving import metrics, problems
from serving.body import Bodies
from serving.health import Live, Ready
from serving.hits import Hits
from serving.openapi import OpenApi
from serving.overload import Admission
from serving.problems import OVERLOADED, Problem
from serving.request import Request, begin_request_ids, request_id, target
from serving.resources import Found, OneRow, Rows, lookup_fields, path_fields
from serving.uvicorn_internals import connections

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from serving.request import Message, Receive, Send
    from serving.settings import Settings

_REPORT_SECONDS: Final = 5
_FIRST_ERROR: Final = 400
_NOT_FOUND: Final = 404
_READS: Final = frozenset({"GET", "HEAD"})

_log: Final = structlog.stdlib.get_logger(__name__)


class _Router(CompiledRouter):
    """Falcon's router, which would ignore additional slashes at the beginning of a path.

    A gateway may decide by the path who can request what, and does not ignore them.
    """

    def find(
        self, uri: str, req: falcon.Request | None = None
    ) -> tuple[object, dict[str, Any], dict[str, Any], str | None] | None:
        """Return the route of a path; None if there is none."""
        return None if uri.startswith("//") else super().find(uri, req)


class App(falcon.asgi.App[Request, Response]):
    """A Falcon application with limits to the time and the number of requests.

    Args:
        settings: the settings of the service.

    Attributes:
        internal: the application for the metrics port.
        hits: answers the reads of existing rows.
        reads: the admission of reads.
        writes: the admission of writes; separate, so that writes that wait for a lock do not stop the reads.
        start_error: the reason why the application could not start.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            media_type="application/json", request_type=Request, middleware=_Record(), router=_Router()
        )
        self.internal = falcon.asgi.App(request_type=Request, middleware=_Record(), router=_Router())
        for each in (self, self.internal):
            each.req_options.strip_url_path_trailing_slash = False
            problems.add_handlers(each)
        seconds = settings.queue_ms / 1000
        self.reads = Admission(seconds, settings.connection_limit)
        self.writes = Admission(seconds, settings.connection_limit)
        self.hits = Hits()
        self.start_error: Exception | None = None
        self._body_seconds = settings.client_timeout_ms / 1000
        self._metrics_port = settings.metrics_port

    async def __call__(  # type: ignore[override]
        self, scope: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        """Handle a request, or the lifespan of the worker process."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, _without_message(send))
            return
        if scope["server"][1] == self._metrics_port:
            await self.internal(scope, _no_body, send)
            return
        admission = self.admission(scope["method"])
        receive = _no_body if admission is self.reads else _Body(receive, self._body_seconds, admission)
        if not scope["path"].startswith("/health/") and admission.refuses():
            await _overloaded(scope, send)
            return
        admission.in_flight += 1
        try:
            if not await self.hits.answer(scope, send):
                tracing = None if admission is self.reads else traces()
                with nullcontext() if tracing is None else tracing.request(scope["method"], scope["headers"]):
                    await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            # The client has left, or the process must exit: nobody waits for the response.
            pass
        finally:
            admission.in_flight -= 1
            admission.finished += 1

    def admission(self, method: str) -> Admission:
        """Return the admission of the requests with this method; a server can then refuse without a call.

        Args:
            method: the method of the request.
        """
        return self.reads if method in _READS else self.writes


class _Body:
    """Receives the body of a request only when the application reads it.

    Falcon asks for the first part of the body before it routes the request, and gets an empty one. A request
    that can be rejected without its body is therefore rejected immediately, and a client that waits for `100
    Continue` gets it only if its body is wanted.

    While it waits for the client, the request is not in flight: slow clients would take the places of all
    others. It must therefore be admitted again when the body has arrived.

    Args:
        receive: receives a part of the body.
        seconds: maximum time for the whole body.
        admission: the admission of the request.
    """

    def __init__(self, receive: Receive, seconds: float, admission: Admission) -> None:
        self._deadline: float | None = None
        self._receive = receive
        self._seconds = seconds
        self._admission = admission

    async def __call__(self) -> Message:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
            return {"type": "http.request", "body": b"", "more_body": True}
        self._admission.in_flight -= 1
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
            if self._admission.refuses():
                raise problems.overloaded()
        except TimeoutError:
            detail = f"the body did not arrive within {self._seconds:g} s"
            raise Problem(problems.REQUEST_TIMEOUT, detail) from None
        finally:
            self._admission.in_flight += 1
        if message["type"] == "http.disconnect":
            # Falcon would take what has arrived for the whole body.
            raise Problem(problems.REQUEST_TIMEOUT, "the connection was closed before the end of the body")
        return message


async def _no_body() -> Message:
    """Receive an empty body: the body of a read does not matter, so there is no need to wait for it."""
    return {"type": "http.request", "body": b"", "more_body": False}


def _without_message(send: Send) -> Send:
    """Return a function that sends lifespan events without the traceback that Falcon adds to them."""

    async def send_type(event: dict[str, Any]) -> None:
        await send({"type": event["type"]})

    return send_type


async def _overloaded(scope: dict[str, Any], send: Send) -> None:
    """Refuse a request without Falcon."""
    headers, body = problems.bare_response(
        OVERLOADED, problems.OVERLOADED_DETAIL, target(scope), request_id(scope["headers"])
    )
    await send({"type": "http.response.start", "status": OVERLOADED.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _keep_reporting(app: App) -> NoReturn:
    """Log how many requests were refused, until canceled; an entry for each would be one more load."""
    refused = 0
    while True:
        await asyncio.sleep(_REPORT_SECONDS)
        total = app.reads.refused + app.writes.refused
        if total > refused:
            _log.warning("overloaded", refused=total - refused)
        refused = total


class _Lifecycle:
    """Opens the service when a worker process starts, and closes it when the process stops."""

    def __init__(
        self, app: App, settings: Settings, open_service: Callable[[Settings], Awaitable[Service]]
    ) -> None:
        self._app = app
        self._settings = settings
        self._open_service = open_service
        self._service: Service | None = None
        self._flusher: metrics.Flusher | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def process_startup(self, _scope: object, _event: object) -> None:
        """Open the service and add the routes of its entities; if that fails, log the reason."""
        begin_traces(self._settings.service)
        try:
            service = await self._open_service(self._settings)
            self._flusher = metrics.Flusher({"read": self._app.reads, "write": self._app.writes})
            _add_routes(self._app, service, self._settings, self._flusher)
        except CacheSyncError as error:
            self._app.start_error = error
            _log.critical("cannot start", error=str(error))
            raise
        except Exception as error:
            _log.critical("cannot start", exc_info=error)
            raise
        self._service = service
        connections.limit = self._settings.connection_limit
        connections.timeout = self._settings.client_timeout_ms / 1000
        connections.admission = self._app.admission
        connections.allow_bodies_of(self._settings.body_limit)
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self._flusher.keep_flushing(),
                connections.keep_sweeping(),
                self._app.reads.keep_adapting(),
                self._app.writes.keep_adapting(),
                _keep_reporting(self._app),
            )
        ]
        begin_request_ids()
        # The objects so far live as long as the process. Traversing them took an eighth of a hit's time.
        gc.collect()
        gc.freeze()

    async def process_shutdown(self, _scope: object, _event: object) -> None:
        """Close the service after the last request."""
        for task in self._tasks:
            task.cancel()
        if self._flusher is not None:
            self._flusher.flush()
        if self._service is not None:
            await self._service.close()
        tracing = traces()
        if tracing is not None:
            await asyncio.to_thread(tracing.flush)


class _Record:
    """Counts each request, adds its ID to the response, and logs all but ordinary reads."""

    async def process_response(
        self,
        req: Request,
        resp: Response,
        resource: object,
        _succeeded: bool,  # noqa: FBT001 - Falcon passes it by position
    ) -> None:
        """Record a request after the resource or an error handler has prepared the response."""
        resp.set_header("X-Request-ID", req.request_id)
        if req.outcome:
            resp.set_header("X-Cache", req.outcome)
        status = resp.status_code
        metrics.observe(getattr(resource, "entity", ""), req.method, req.outcome, req.started, status)
        tracing = traces()
        if tracing is not None and req.method not in _READS:
            tracing.responded(req.method, getattr(resource, "entity", ""), status)
        # Reads of existing and of missing rows are ordinary.
        if req.method not in _READS or (status >= _FIRST_ERROR and status != _NOT_FOUND):
            _log.info(
                "request",
                method=req.method,
                path=req.target,
                status=status,
                cache=req.outcome,
                request_id=req.request_id,
            )


def create_app(
    settings: Settings, open_service: Callable[[Settings], Awaitable[Service]] = Service.open
) -> App:
    """Create the application of a service. The service itself is opened when the ASGI lifespan starts.

    Args:
        settings: the settings of the service.
        open_service: opens the service; tests replace it.
    """
    app = App(settings)
    app.add_middleware(_Lifecycle(app, settings, open_service))
    return app


def _add_routes(app: App, service: Service, settings: Settings, flusher: metrics.Flusher) -> None:
    health: dict[str, object] = {"/health/live": Live(), "/health/ready": Ready(service)}
    for path, resource in {**health, "/metrics": metrics.Metrics(flusher, service)}.items():
        app.internal.add_route(path, resource)
    own = {**health, "/openapi.json": OpenApi(service.caches.values(), settings)}
    for path, resource in own.items():
        app.add_route(path, resource)
        app.hits.leave(path)
    for cache in service.caches.values():
        path = cache.entity.path
        if path in own:
            message = (
                f"entity {cache.entity.name!r} cannot use the path {path}, which the service itself uses"
            )
            raise DeclarationError(message)
        bodies = Bodies(cache, settings.body_limit)
        found = Found(cache)
        app.add_route(path, Rows(cache, bodies, settings.page_limit))
        app.hits.leave(path)
        fields = "/".join(f"{{{field}}}" for field in path_fields(cache.key))
        app.add_route(f"{path}/{fields}", OneRow(cache, bodies))
        for columns in {len(columns) for columns in cache.entity.unique}:
            fields = "/".join(f"{{{field}}}" for field in lookup_fields(columns))
            app.add_route(f"{path}{LOOKUP_PATH}/{{columns}}/{fields}", found)
        app.hits.add(cache)
