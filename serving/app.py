"""The application that both services are: the entities of the entities file over HTTP."""

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

    from falcon._typing import AsgiReceive, AsgiSend

    from serving.settings import Settings

# What gunicorn takes for "this worker cannot start": it ends instead of starting it again and again.
_CANNOT_START: Final = 3
_RESTART_PAUSE_SECONDS: Final = 1
_FIRST_ERROR: Final = 400
_NOT_FOUND: Final = 404
_READS: Final = frozenset({"GET", "HEAD"})

_log: Final = structlog.stdlib.get_logger(__name__)


class App(falcon.asgi.App[Request, Response]):
    """Falcon's application, closed to what would make it or its server answer with a 5xx."""

    def __call__(  # type: ignore[override]
        self, scope: dict[str, Any], receive: AsgiReceive, send: AsgiSend
    ) -> Coroutine[Any, Any, None]:
        """Answer a connection; no coroutine of its own stands between the server and a read."""
        if scope["type"] == "http":
            reads = scope["method"] in _READS
            return super().__call__(scope, _no_body if reads else _Body(scope, receive, send), send)
        if scope["type"] == "websocket":
            return _refuse_websocket()
        return super().__call__(scope, receive, send)


class _Body:
    """Receives a body when it is asked for; Falcon asks before it knows whether anyone wants it.

    So what can be refused without its body is refused at once, and a client that never sends the body
    gets an answer of the application: where the application gives none, the server says 500.
    """

    def __init__(self, scope: dict[str, Any], receive: AsgiReceive, send: AsgiSend) -> None:
        headers = scope["headers"] = [(name, value) for name, value in scope["headers"]]
        self._continue = any(name == b"expect" for name, _ in headers)
        self._asked = False
        self._receive = receive
        self._send = send

    async def __call__(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": True}
        if self._continue:
            self._continue = False
            await self._send({"type": "http.response.informational", "status": 100, "headers": []})
        return await self._receive()


async def _no_body() -> Any:
    """The body of a read means nothing, so that nobody has to wait for it."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def _refuse_websocket() -> None:
    """Say nothing: on `websocket.close`, the server sends a frame to who has not been accepted."""


class _Lifecycle:
    """Opens the service when a worker starts, and closes it when it stops."""

    def __init__(
        self, app: App, settings: Settings, open_service: Callable[[Settings], Awaitable[Service]]
    ) -> None:
        self._app = app
        self._settings = settings
        self._open_service = open_service
        self._service: Service | None = None
        self._counting: asyncio.Task[None] | None = None

    async def process_startup(self, scope: dict[str, Any], _event: object) -> None:
        """Open the service and offer its entities.

        Raises:
            SystemExit: it cannot be opened; the log says why.
        """
        try:
            service = await self._open_service(self._settings)
            _add_routes(self._app, service, self._settings)
        except CacheSyncError as error:
            _log.critical(f"cannot start: {error}")
            if isinstance(error, DatabaseUnavailableError) and scope.get("state", {}).get("replaces_another"):
                # The other workers can still answer what is cached; this one is tried again.
                await asyncio.sleep(_RESTART_PAUSE_SECONDS)
                raise SystemExit(1) from error
            raise SystemExit(_CANNOT_START) from error
        except Exception as error:
            _log.critical("cannot start", exc_info=error)
            raise SystemExit(_CANNOT_START) from error
        self._service = service
        self._counting = asyncio.create_task(metrics.keep_flushing())
        begin_request_ids()
        # What has been made so far stays; looking through it again and again cost a cached hit an eighth.
        gc.collect()
        gc.freeze()

    async def process_shutdown(self, _scope: object, _event: object) -> None:
        """Close the service, after the last request."""
        if self._counting is not None:
            self._counting.cancel()
        metrics.flush()
        if self._service is not None:
            await self._service.close()


class _Record:
    """Counts each request, gives it its id, and logs it where it is worth a line."""

    async def process_response(
        self,
        req: Request,
        resp: Response,
        resource: object,
        _succeeded: bool,  # noqa: FBT001 - Falcon's
    ) -> None:
        """Do so, after the resource or the error handler has answered."""
        resp.set_header("X-Request-ID", req.request_id)
        if req.outcome:
            resp.set_header("X-Cache", req.outcome)
        status = resp.status_code
        metrics.observe(getattr(resource, "entity", ""), req, status)
        # A row that is there and one that is not are what reads are for.
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
    """The application of a service; it opens the service when its lifespan starts."""
    app = App(media_type="application/json", request_type=Request, middleware=_Record())
    app.add_middleware(_Lifecycle(app, settings, open_service))
    app.req_options.strip_url_path_trailing_slash = False
    problems.add_handlers(app)
    return app


def _add_routes(app: App, service: Service, settings: Settings) -> None:
    own: dict[str, object] = {
        "/health/live": Live(),
        "/health/ready": Ready(service),
        "/metrics": metrics.Metrics(),
        "/openapi.json": OpenApi(service.caches.values(), settings),
    }
    for path, resource in own.items():
        app.add_route(path, resource)
    for cache in service.caches.values():
        path = cache.entity.path
        if path in own:
            message = f"entity {cache.entity.name!r} cannot have the path {path}: the service itself uses it"
            raise DeclarationError(message)
        bodies = Bodies(cache, settings.body_limit)
        app.add_route(path, Rows(cache, bodies, settings.page_limit))
        app.add_route(f"{path}/{{key}}", OneRow(cache, bodies))
