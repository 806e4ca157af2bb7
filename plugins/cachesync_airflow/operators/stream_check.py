"""The operator of the DAG `stream_check`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from cachesync.entity import load_entities
from cachesync.errors import CacheSyncError
from cachesync.kafka.groups import shared_groups, unconsumed, unconsumed_in_words
from cachesync.postgres.connect import connected
from cachesync.relay.sessions import connected_relays
from cachesync_airflow.connections import consumer, database
from cachesync_airflow.failures import final_failures
from cachesync_airflow.settings import AirflowSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from airflow.sdk import Context

# Longer than it takes to hand over to another triggerer, or to restart one.
_PATIENCE_SECONDS: Final = 45.0
_PAUSE_SECONDS: Final = 2.0


class StreamCheckOperator(BaseOperator):
    """Fails if a cache is not followed, or if the relay is not running."""

    def execute(self, context: Context) -> None:  # noqa: ARG002 - Airflow's signature
        """Look until everything is running.

        Raises:
            AirflowFailException: it was not within 45 seconds; the text names each cache and the reason.
        """
        with final_failures():
            settings = AirflowSettings.load()
            topics = [entity.topic for entity in load_entities(settings.entities).values()]
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while problems := _problems(settings.caches, topics):
                if time.monotonic() > deadline:
                    raise AirflowFailException("; ".join(problems))
                time.sleep(_PAUSE_SECONDS)
        self.log.info("all caches are followed: %s; the relay is running", ", ".join(settings.caches))


def _problems(services: Collection[str], topics: Collection[str]) -> list[str]:
    consumers = {service: consumer(service) for service in services}
    groups = {service: kafka["group.id"] for service, kafka in consumers.items()}
    found = [
        f"{problem}: set another group.id in the connection kafka_{service}, and reconcile both"
        for service, problem in shared_groups(groups)
    ]
    found += [_stream_problem(service, kafka, topics) for service, kafka in consumers.items()]
    return list(filter(None, [*found, asyncio.run(_relay_problem())]))


def _stream_problem(service: str, kafka: Mapping[str, Any], topics: Collection[str]) -> str:
    group = kafka["group.id"]
    try:
        left = unconsumed(kafka, group, topics)
    except CacheSyncError as error:
        return f"cache {service}: cannot look whether it is followed: {error}"
    if not left:
        return ""
    return (
        f"{unconsumed_in_words(left, service, group)}; see the tasks apply_{service}_* of the DAG "
        "cache_sync, which must not be paused"
    )


async def _relay_problem() -> str:
    try:
        async with connected(database(), "cachesync-stream-check") as connection:
            relays = await connected_relays(connection)
    except CacheSyncError as error:
        return f"cannot look whether the relay is running: {error}"
    if relays:
        return ""
    return (
        "the relay is not running, so that changes outside the services are not published; "
        "see the DAG outbox_relay, which must not be paused"
    )
