"""The trigger that applies changes to one service's cache, inside the triggerer."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from airflow.providers.apache.kafka.hooks.consume import KafkaConsumerHook
from airflow.providers.apache.kafka.hooks.produce import KafkaProducerHook
from airflow.providers.redis.hooks.redis import RedisHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from cachesync.apply import Applier
from cachesync.dead_letter import DeadLetters
from cachesync.entity import load_entities
from cachesync.stream import Stream, require_manual_commit
from cachesync_airflow.settings import AirflowSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# A frozen Redis must not freeze the stream with it: it is paused, and stays in its consumer group.
_REDIS_SECONDS: Final = 2.0


class CacheSyncTrigger(BaseTrigger):
    """Consumes and applies until it is cancelled; yields an event only when it cannot go on.

    The work runs in a thread of its own, so that it blocks neither the triggerer's event loop nor the
    thread that other triggers share.

    Args:
        service: the service whose cache follows.
        member: which of the cache's consumers this is, from 0.
    """

    def __init__(self, service: str, member: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.service = service
        self.member = member

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How Airflow makes this trigger again in the triggerer."""
        return (
            "cachesync_airflow.triggers.cache_sync.CacheSyncTrigger",
            {"service": self.service, "member": self.member},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Stream; the one event's payload is the text of the error."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"cache-sync-{self.service}-{self.member}")
        loop = asyncio.get_running_loop()
        stream: Stream | None = None
        try:
            stream = await loop.run_in_executor(executor, self._open)
            self.log.info("streaming to the cache of %s, member %s", self.service, self.member)
            await loop.run_in_executor(executor, stream.run)
        except Exception as error:
            self.log.exception("the stream to the cache of %s ended", self.service)
            yield TriggerEvent(f"{type(error).__name__}: {error}")
        finally:
            if stream is not None:
                stream.stop()
            await asyncio.to_thread(executor.shutdown)

    def _open(self) -> Stream:
        entities = load_entities(AirflowSettings().entities)
        connection = f"kafka_{self.service}"
        consumer_hook = KafkaConsumerHook([entity.topic for entity in entities.values()], connection)
        settings = consumer_hook.get_connection(connection).extra_dejson
        require_manual_commit(settings)
        client = RedisHook(f"redis_{self.service}").get_conn()
        client.connection_pool.connection_kwargs.update(
            socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
        )
        return Stream(
            consumer_hook.get_consumer(),
            Applier(client, self.service, entities),
            DeadLetters(KafkaProducerHook(connection).get_producer, self.service, settings["group.id"]),
            entities,
            self.service,
        )
