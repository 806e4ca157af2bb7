"""Liveness and readiness of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from serving import problems
from serving.problems import MEDIA_TYPE, NOT_READY

if TYPE_CHECKING:
    from falcon.asgi import Response

    from cachesync.service.service import Service
    from serving.request import Request


class Live:
    """`/health/live`: the process responds."""

    entity = "health"

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Respond without checking anything else."""
        resp.data = b'{"status": "live"}'

    on_head = on_get


class Ready:
    """`/health/ready`: the database responds.

    A service without Redis or Kafka is still ready, as is one that refuses the writes of some entities
    because their tables are not as they were installed.
    """

    entity = "health"

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_get(self, req: Request, resp: Response) -> None:
        """Check PostgreSQL, Redis and Kafka, and report each, and the entities with a problem."""
        parts = await self._service.health()
        if parts["postgresql"]:
            problems_by_entity = self._service.problems()
            entities = {"entities": problems_by_entity} if problems_by_entity else {}
            resp.data = orjson.dumps({"status": "ready", **parts, **entities})
            return
        resp.status = NOT_READY.status
        resp.content_type = MEDIA_TYPE
        resp.data = problems.document(NOT_READY, "PostgreSQL did not respond", req.target, extension=parts)

    on_head = on_get
