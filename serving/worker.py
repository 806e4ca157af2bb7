"""The gunicorn worker class of the services: uvicorn, with `Connection` as its protocol."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar, Final

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

from cachesync.errors import CacheSyncError

_RESTART_PAUSE_SECONDS: Final = 1


class Worker(UvicornWorker):  # type: ignore[misc]
    """A worker process.

    Attributes:
        replaces_another: whether it replaces a worker process that has ended.
    """

    # gunicorn kills a worker process after its graceful timeout of 30 s. The process must wait less for its
    # clients, or it is killed before it has closed the service.
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "http": "serving.uvicorn_internals:Connection",
        "loop": "uvloop",
        "ws": "none",
        "lifespan": "on",
        "interface": "asgi3",
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": 20,
    }

    replaces_another = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # uvicorn-worker wants gunicorn's handlers, but ours are those of the root logger.
        logging.getLogger("uvicorn.error").propagate = True

    async def _serve(self) -> None:
        try:
            await super()._serve()
        except SystemExit as error:
            if self.replaces_another and isinstance(self.wsgi.start_error, CacheSyncError):
                # What is missing can be mended; until then, the other worker processes serve. On uvicorn's
                # exit code, gunicorn would end all of them instead of replacing this one again.
                await asyncio.sleep(_RESTART_PAUSE_SECONDS)
                raise SystemExit(1) from error
            raise
