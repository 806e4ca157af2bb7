"""Reads of existing rows without Falcon, whose work for a request costs more than the rest of a hit."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from serving import metrics
from serving.conditions import etag
from serving.request import STARTED, request_id

if TYPE_CHECKING:
    from cachesync.service.cache import EntityCache
    from serving.request import Send

READ: Final = "cachesync.read"
"""The key in a scope under which the result of a read is passed on, or the error that it raised."""


class Hits:
    """Answers the reads of rows that exist and that have no precondition; everything else is Falcon's.

    The responses are the same as those of `OneRow`.
    """

    def __init__(self) -> None:
        self._caches: dict[bytes, EntityCache] = {}
        # Resources that have a path which could also be that of a row.
        self._others: set[bytes] = set()

    def leave(self, path: str) -> None:
        """Leave the requests for a path to Falcon."""
        self._others.add(path.encode())

    def add(self, cache: EntityCache) -> None:
        """Answer the reads of an entity's rows."""
        self._caches[cache.entity.path.encode()] = cache

    async def answer(self, scope: dict[str, Any], send: Send) -> bool:
        """Answer a request if it is such a read.

        If there is no row, or if the read fails, the scope gets the result.

        Returns:
            Whether the request was answered.
        """
        if scope["method"] != "GET":
            return False
        path: bytes = scope["raw_path"]
        folder, _, key = path.rpartition(b"/")
        cache = self._caches.get(folder)
        if cache is None or not key or not key.isascii() or b"%" in key or path in self._others:
            return False
        headers = scope["headers"]
        for name, _ in headers:
            if name == b"if-none-match":
                return False
        started = scope[STARTED] = perf_counter()
        try:
            read = await cache.read(key.decode())
        except Exception as error:  # noqa: BLE001 - Falcon responds to it
            scope[READ] = error
            return False
        row = read.row
        if row is None:
            scope[READ] = read
            return False
        payload = row.payload
        outcome = read.outcome.value
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"etag", etag(row.version).encode()),
                    (b"x-request-id", request_id(headers).encode()),
                    (b"x-cache", outcome.encode()),
                    (b"content-length", b"%d" % len(payload)),
                    (b"content-type", b"application/json"),
                ],
            }
        )
        await send({"type": "http.response.body", "body": payload})
        metrics.observe(cache.entity.name, "GET", outcome, started, 200)
        return True
