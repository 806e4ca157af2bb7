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
        # By the number of segments of a key, the lowest first: Falcon prefers the longest path of an entity.
        self._caches: dict[int, dict[bytes, EntityCache]] = {}
        # Resources that have a path which could also be that of a row.
        self._others: set[bytes] = set()

    def leave(self, path: str) -> None:
        """Leave the requests for a path to Falcon."""
        self._others.add(path.encode())

    def add(self, cache: EntityCache) -> None:
        """Answer the reads of an entity's rows."""
        self._caches.setdefault(len(cache.key.columns), {})[cache.entity.path.encode()] = cache
        self._caches = dict(sorted(self._caches.items()))

    async def answer(self, scope: dict[str, Any], send: Send) -> bool:
        """Answer a request if it is such a read.

        If there is no row, or if the read fails, the scope gets the result.

        Returns:
            Whether the request was answered.
        """
        if scope["method"] != "GET":
            return False
        path: bytes = scope["raw_path"]
        cache = None
        for count, caches in self._caches.items():
            folder, *segments = path.rsplit(b"/", count)
            cache = caches.get(folder)
            if cache is not None:
                break
        if cache is None or not all(segments) or not path.isascii() or b"%" in path or path in self._others:
            return False
        headers = scope["headers"]
        for name, _ in headers:
            if name == b"if-none-match":
                return False
        started = scope[STARTED] = perf_counter()
        try:
            read = await cache.read(tuple([segment.decode() for segment in segments]))
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
