"""The trigger that applies changes to one service's cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.apache.kafka.hooks.consume import KafkaConsumerHook
from airflow.providers.apache.kafka.hooks.produce import KafkaProducerHook

from cachesync.reloading import ReloadingWork
from cachesync.stream.stream import REDIS_SECONDS, open_stream
from cachesync_airflow.connections import consumer, redis
from cachesync_airflow.settings import AirflowSettings
from cachesync_airflow.triggers.thread import ThreadTrigger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.dead_letters.letter import RetryPolicy
    from cachesync.entity import Entity
    from cachesync.stream.stream import Stream


class CacheSyncTrigger(ThreadTrigger):
    """Runs the stream of one of a cache's consumers.

    Args:
        service: the service that owns the cache.
        member: the number of the consumer, from 0.
        run: when the run ends, and its tasks; see `ThreadTrigger`.
    """

    def __init__(self, service: str, member: int, **run: Any) -> None:
        super().__init__(service=service, member=member, **run)
        self.service = service

    def open(self) -> ReloadingWork:
        """Create the stream, with the connections `redis_{service}` and `kafka_{service}`.

        Raises:
            SettingsError: a setting or the consumer group is missing or invalid.
            DeclarationError: the entities file is missing or invalid.
            StreamError: the consumer would skip changes.
        """
        settings = AirflowSettings.load()
        return ReloadingWork(
            settings.entities, lambda entities: self._open_stream(entities, settings.retry_policy)
        )

    def _open_stream(self, entities: Mapping[str, Entity], policy: RetryPolicy) -> Stream:
        connection = f"kafka_{self.service}"
        return open_stream(
            self.service,
            entities,
            redis(self.service, REDIS_SECONDS),
            consumer(self.service),
            policy,
            # A hook returns the same consumer each time. The stream subscribes to the topics.
            connect=lambda: KafkaConsumerHook([], connection).get_conn,
            connect_producer=KafkaProducerHook(connection).get_producer,
        )
