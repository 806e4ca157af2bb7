"""Publishes changes right after their commit."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import structlog

from cachesync.kafka.producer import Sender, producer_settings
from cachesync.metrics import service as metrics
from cachesync.traces import traces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from confluent_kafka import KafkaError

    from cachesync.change import Change
    from cachesync.entity import Entity
    from cachesync.traces import Headers

_log = structlog.get_logger(__name__)

# Long enough for one statement to mark many acknowledged changes, and short compared with the time for which
# the relay leaves them to the service.
_MARK_SECONDS: Final = 0.1
_FLUSH_SECONDS: Final = 5.0


class Publisher:
    """Publishes changes and marks those that the broker acknowledged.

    Publishing never blocks and never raises: a change that cannot be delivered stays unmarked in the change
    log, and the relay publishes it.

    Args:
        kafka: librdkafka's settings for connecting to the brokers.
        entities: the declared entities by name.
        mark: marks the changes with the given row versions as published in the change log.

    Raises:
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(
        self,
        kafka: Mapping[str, Any],
        entities: Mapping[str, Entity],
        mark: Callable[[list[int]], Awaitable[None]],
    ) -> None:
        self._sender = Sender(producer_settings(kafka), entities)
        self._mark = mark
        metrics.published.export()
        self._acknowledged: deque[int] = deque()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="cachesync-publisher", daemon=True)
        self._poller.start()
        self._marker = self._loop.create_task(self._mark_acknowledged())

    def publish(self, topic: str, change: Change) -> None:
        """Queue a change for delivery.

        Args:
            topic: the topic of the change's entity.
            change: the change.
        """
        version = change.version
        tracing = traces()
        span = None
        headers: Headers = []
        if tracing is not None:
            span, headers = tracing.publishing(change.entity, version)

        def settled(error: KafkaError | None) -> None:
            if tracing is not None and span is not None:
                tracing.published(span, None if error is None else error.str())
            if error is None:
                self._acknowledge(version)
            else:
                metrics.unpublished.labels(error.name()).inc()

        self._sender.send(topic, change, settled, headers=headers)

    async def is_available(self, timeout: float) -> bool:  # noqa: ASYNC109 - limits a call in a thread
        """Return whether a broker responds within a timeout in seconds."""
        return await asyncio.to_thread(self._sender.is_available, timeout)

    async def close(self) -> None:
        """Deliver the queued changes, for a few seconds at most, and mark those that were acknowledged."""
        left = await asyncio.to_thread(self._sender.flush, _FLUSH_SECONDS)
        if left:
            _log.warning("closed with unpublished changes", count=left)
        self._stopping.set()
        await asyncio.to_thread(self._poller.join)
        # Not canceled, because the changes that it is about to mark would stay unmarked.
        self._wake.set()
        await self._marker
        await self._mark_batch()

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._sender.poll(0.1)

    def _acknowledge(self, version: int) -> None:
        metrics.published.inc()
        self._acknowledged.append(version)
        if len(self._acknowledged) == 1:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _mark_acknowledged(self) -> None:
        while not self._stopping.is_set():
            await self._wake.wait()
            await asyncio.sleep(_MARK_SECONDS)
            self._wake.clear()
            await self._mark_batch()

    async def _mark_batch(self) -> None:
        versions = [self._acknowledged.popleft() for _ in range(len(self._acknowledged))]
        if not versions:
            return
        try:
            await self._mark(versions)
        except Exception as error:  # noqa: BLE001 - no error may end the marking
            # The relay will publish them again, which is harmless.
            _log.warning("cannot mark published changes", count=len(versions), error=str(error))
