"""The baseline for a cached hit: Falcon on the same server, responding with the same bytes from memory."""

from __future__ import annotations

from typing import Final

import falcon.asgi

PAYLOAD: Final = b'{"id":1,"name":"Ann","age":20}'


class _Constant:
    async def on_get(self, _: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Respond with the payload."""
        resp.data = PAYLOAD


app = falcon.asgi.App()
app.add_route("/constant", _Constant())
