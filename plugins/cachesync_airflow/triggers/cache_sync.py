"""The trigger that applies changes to one service's cache."""

from __future__ import annotations

from typing import Any, Final

from airflow.providers.apache.kafka.hooks.consume import KafkaConsumerHook
from airflow.providers.apache.kafka.hooks.produce import KafkaProducerHook

from cachesync.dead_letters.sender import DeadLetterSender
from cachesync.entity import load_entities
from cachesync.kafka.clients import check_settings
from cachesync.slots.batch import Applier
from cachesync.stream.stream import Stream, check_consumer_settings
from cachesync_airflow.connections import consumer, redis
from cachesync_airflow.settings import AirflowSettings
from cachesync_airflow.triggers.thread import ThreadTrigger

# Short, so that a frozen Redis does not freeze the stream, which pauses and stays in its consumer group.
_REDIS_SECONDS: Final = 2.0


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

    def open(self) -> Stream:
        """Create the stream, with the connections `redis_{service}` and `kafka_{service}`.

        Raises:
            SettingsError: a setting or the consumer group is missing or invalid.
            StreamError: the consumer would skip changes.
        """
        airflow_settings = AirflowSettings.load()
        entities = load_entities(airflow_settings.entities)
        settings = consumer(self.service)
        check_consumer_settings(settings)
        check_settings(settings)
        connection = f"kafka_{self.service}"
        client = redis(self.service, _REDIS_SECONDS)
        return Stream(
            # A hook returns the same consumer each time. The stream subscribes to the topics.
            lambda: KafkaConsumerHook([], connection).get_conn,
            Applier(client, self.service, entities),
            DeadLetterSender(
                KafkaProducerHook(connection).get_producer,
                self.service,
                settings["group.id"],
                airflow_settings.retry_policy,
            ),
            entities,
            self.service,
            settings=settings,
        )
