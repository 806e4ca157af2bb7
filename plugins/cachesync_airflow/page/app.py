"""The endpoints of the page, and who may use them."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Final

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.sdk.exceptions import AirflowNotFoundException
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response, status
from fastapi.responses import JSONResponse

from cachesync.errors import (
    CacheSyncError,
    DeclarationError,
    InvalidValueError,
)
from cachesync.overview.models import KeyReport, Point  # noqa: TC001 - FastAPI reads the annotations
from cachesync_airflow.page.configuration import ConfiguredOverview
from cachesync_airflow.page.reader import Lags, Overview, Period, Reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Whoever may read this DAG may see what it does.
READ: Final = "cache_sync"
#: What the page can trigger, for those who may trigger it.
RECONCILE: Final = "reconcile"
LETTERS: Final = "dead_letter_retry"

_MAX_KEY: Final = 10_000
# The names of services and entities are shorter.
_Name = Annotated[str, Query(max_length=200)]

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_HEADERS: Final = {
    # Nothing from elsewhere, nothing inline, and only Airflow itself shows it in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}
# The text of such an error says what to correct.
_ANSWERS: Final[dict[type[Exception], int]] = {
    DeclarationError: status.HTTP_422_UNPROCESSABLE_CONTENT,
    InvalidValueError: status.HTTP_422_UNPROCESSABLE_CONTENT,
    CacheSyncError: status.HTTP_503_SERVICE_UNAVAILABLE,
    AirflowNotFoundException: status.HTTP_503_SERVICE_UNAVAILABLE,
}


def make_page(current: Callable[[], Overview] | None = None) -> FastAPI:
    """Return the application that Airflow mounts. Every endpoint asks Airflow whether the user may read it.

    Args:
        current: returns the overview that answers; None for that of Airflow's settings and connections.
    """
    reader = Reader(current or ConfiguredOverview().current)
    page = FastAPI(
        title="db-cache-sync",
        dependencies=[Depends(requires_access_dag(method="GET", param_dag_id=READ))],
        # They would have no such dependency.
        openapi_url=None,
    )

    page.middleware("http")(_add_headers)
    for error, code in _ANSWERS.items():
        page.add_exception_handler(error, _answer_of(code))

    index, others = _static()
    for name, content in others.items():
        page.get(f"/{name}", include_in_schema=False)(_sending(name, content))

    @page.get("/", include_in_schema=False)
    async def itself() -> Response:
        """Return the page."""
        reader.look_ahead()
        return Response(index, media_type=_TYPES["html"])

    @page.get("/api/me")
    def me(request: Request, user: GetUserDep) -> dict[str, bool]:
        """Return what the user may trigger."""
        return {
            "reconcile": _may_trigger(RECONCILE, request, user),
            "letters": _may_trigger(LETTERS, request, user),
        }

    @page.get("/api/status")
    async def overview(
        period: Period = "hour", if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Return the overview of all caches; 304 if only its time has changed.

        Without the last day, unless that is the period: adding it up takes longer than all else.
        """
        snapshot = await reader.status(period)
        headers = {"ETag": snapshot.etag}
        # Airflow compresses responses, and a proxy that does so makes the tag a weak one.
        if if_none_match and snapshot.etag in if_none_match:
            return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
        return Response(snapshot.body, media_type="application/json", headers=headers)

    @page.get("/api/history")
    async def history(
        period: Period = "hour", service: _Name | None = None, entity: _Name | None = None
    ) -> tuple[Point, ...]:
        """Return what the live check has seen."""
        return await reader.history(period, service, entity)

    @page.get("/api/lags")
    async def lags() -> Lags:
        """Return the lag of each entity in each cache over the last hour."""
        return await reader.lags()

    @page.get("/api/key")
    async def show(entity: _Name, key: Annotated[str, Query(max_length=_MAX_KEY)]) -> KeyReport:
        """Return what is known of one key."""
        return await reader.show(entity, key)

    return page


async def _add_headers(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _static() -> tuple[bytes, dict[str, bytes]]:
    """Return the page itself, and its other files by their names."""
    folder = files("cachesync_airflow.page") / "static"
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    page = content.pop("index.html").decode()
    for name, text in content.items():
        # A browser keeps the files for as long as the page names the same ones.
        page = page.replace(f'"{name}"', f'"{name}?{hashlib.sha256(text).hexdigest()[:16]}"')
    return page.encode(), content


def _sending(name: str, content: bytes) -> Callable[[], Awaitable[Response]]:
    media_type = _TYPES.get(name.rpartition(".")[2], "text/plain")
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}

    async def send() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return send


def _may_trigger(dag: str, request: Request, user: Any) -> bool:
    required = requires_access_dag(method="POST", access_entity=DagAccessEntity.RUN, param_dag_id=dag)
    try:
        required(request, user)
    except HTTPException:
        return False
    return True


def _answer_of(code: int) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, code)

    return answer
