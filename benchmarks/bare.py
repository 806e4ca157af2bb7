"""The base for the services: Falcon on the same server, with a constant response and an INSERT."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import falcon.asgi
import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

PAYLOAD: Final = b'{"id":1,"name":"Ann","age":20}'
_INSERT: Final = (
    "INSERT INTO plain AS p (id, name, age) VALUES ($1, $2, $3)"
    " RETURNING (SELECT row_to_json(r)::text FROM (SELECT p.id, p.name, p.age) AS r)"
)


class _Constant:
    async def on_get(self, _: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Respond with the payload."""
        resp.data = PAYLOAD


class _Rows:
    def __init__(self) -> None:
        self._pool: asyncpg.Pool | None = None

    # Falcon prescribes the names of the arguments.
    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Connect to the database, with as many connections as a service has by default."""
        if "DSN" in os.environ:
            self._pool = await asyncpg.create_pool(os.environ["DSN"], min_size=1, max_size=10)

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Insert the row and respond with it."""
        assert self._pool is not None
        row = orjson.loads(await req.stream.read())
        resp.text = await self._pool.fetchval(_INSERT, row["id"], row["name"], row["age"])
        resp.status = falcon.HTTP_201
        resp.content_type = falcon.MEDIA_JSON


_rows = _Rows()
app = falcon.asgi.App()
app.add_middleware(_rows)
app.add_route("/constant", _Constant())
app.add_route("/rows", _rows)
