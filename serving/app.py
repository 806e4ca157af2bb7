"""The Falcon application of both services: the entities of the entities file over HTTP."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any, Final

import falcon.asgi
import structlog
from falcon.asgi import Response

from cachesync.errors import CacheSyncError, DatabaseUnavailableError, DeclarationError
from cachesync.service.service import Service
from serving import metrics, problems
from serving.body import Bodies
from serving.health import Live, Ready
from serving.openapi import OpenApi
from serving.request import Request, begin_request_ids
from serving.resources import OneRow, Rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from serving.request import Message, Receive, Send
    from serving.settings import Settings

# If a worker process exits with this code, gunicorn exits, too, instead of replacing it forever.
_CANNOT_START: Final = 3
_RESTART_PAUSE_SECONDS: Final = 1
_FIRST_ERROR: Final = 400
_NOT_FOUND: Final = 404
_READS: Final = frozenset({"GET", "HEAD"})

_log: Final = structlog.stdlib.get_logger(__name__)


class App(falcon.asgi.App[Request, Response]):
    """A Falcon application that handles requests to which Falcon or gunicorn would respond with a 5xx.

    Args:
        metrics_port: port of the connections whose requests `internal` handles instead.

    Attributes:
        internal: the application for the metrics port.
    """

    def __init__(self, metrics_port: int) -> None:
        super().__init__(media_type="application/json", request_type=Request, middleware=_Record())
        self.internal = falcon.asgi.App(request_type=Request, middleware=_Record())
        for each in (self, self.internal):
            each.req_options.strip_url_path_trailing_slash = False
            problems.add_handlers(each)
        self._metrics_port = metrics_port

    def __call__(  # type: ignore[override]
        self, scope: dict[str, Any], receive: Receive, send: Send
    ) -> Coroutine[Any, Any, None]:
        """Handle an ASGI connection; returns Falcon's own coroutine, as wrapping it would slow down reads."""
        if scope["type"] == "http":
            if scope["server"][1] == self._metrics_port:
                return self.internal(scope, _no_body, send)
            reads = scope["method"] in _READS
            return super().__call__(scope, _no_body if reads else _Body(scope, receive, send), send)
        if scope["type"] == "websocket":
            return _refuse_websocket()
        return super().__call__(scope, receive, send)


class _Body:
    """Receives the body of a request only when the application reads it.

    Falcon asks for the first part of the body before it routes the request, and gets an empty one. A request
    that can be rejected without its body is therefore rejected immediately. A client that never sends the
    body gets a response from the application; without one, gunicorn would respond with a 500.
    """

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        headers = scope["headers"] = [(name, value) for name, value in scope["headers"]]
        self._continue = any(name == b"expect" for name, _ in headers)
        self._asked = False
        self._receive = receive
        self._send = send

    async def __call__(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": True}
        if self._continue:
            self._continue = False
            await self._send({"type": "http.response.informational", "status": 100, "headers": []})
        return await self._receive()


async def _no_body() -> Message:
    """Receive an empty body: the body of a read does not matter, so there is no need to wait for it."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def _refuse_websocket() -> None:
    """Return without a message: on `websocket.close`, gunicorn would send a frame before the handshake."""


class _Lifecycle:
    """Opens the service when a worker process starts, and closes it when the process stops."""

    def __init__(
        self, app: App, settings: Settings, open_service: Callable[[Settings], Awaitable[Service]]
    ) -> None:
        self._app = app
        self._settings = settings
        self._open_service = open_service
        self._service: Service | None = None
        self._counting: asyncio.Task[None] | None = None

    async def process_startup(self, scope: dict[str, Any], _event: object) -> None:
        """Open the service and add the routes of its entities.

        Raises:
            SystemExit: the service cannot be opened; the log contains the reason.
        """
        try:
            service = await self._open_service(self._settings)
            _add_routes(self._app, service, self._settings)
        except CacheSyncError as error:
            _log.critical("cannot start", error=str(error))
            if isinstance(error, DatabaseUnavailableError) and scope.get("state", {}).get("replaces_another"):
                # The other worker processes can still serve cached rows, and gunicorn replaces this one.
                await asyncio.sleep(_RESTART_PAUSE_SECONDS)
                raise SystemExit(1) from error
            raise SystemExit(_CANNOT_START) from error
        except Exception as error:
            _log.critical("cannot start", exc_info=error)
            raise SystemExit(_CANNOT_START) from error
        self._service = service
        self._counting = asyncio.create_task(metrics.keep_flushing())
        begin_request_ids()
        # The objects so far live as long as the process. Traversing them took an eighth of a hit's time.
        gc.collect()
        gc.freeze()

    async def process_shutdown(self, _scope: object, _event: object) -> None:
        """Close the service after the last request."""
        if self._counting is not None:
            self._counting.cancel()
        metrics.flush()
        if self._service is not None:
            await self._service.close()


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
        metrics.observe(getattr(resource, "entity", ""), req, status)
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
    app = App(settings.metrics_port)
    app.add_middleware(_Lifecycle(app, settings, open_service))
    return app


def _add_routes(app: App, service: Service, settings: Settings) -> None:
    health: dict[str, object] = {"/health/live": Live(), "/health/ready": Ready(service)}
    for path, resource in {**health, "/metrics": metrics.Metrics()}.items():
        app.internal.add_route(path, resource)
    own = {**health, "/openapi.json": OpenApi(service.caches.values(), settings)}
    for path, resource in own.items():
        app.add_route(path, resource)
    for cache in service.caches.values():
        path = cache.entity.path
        if path in own:
            message = (
                f"entity {cache.entity.name!r} cannot use the path {path}, which the service itself uses"
            )
            raise DeclarationError(message)
        bodies = Bodies(cache, settings.body_limit)
        app.add_route(path, Rows(cache, bodies, settings.page_limit))
        app.add_route(f"{path}/{{key}}", OneRow(cache, bodies))
