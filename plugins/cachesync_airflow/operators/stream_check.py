"""The operator of the DAG `stream_check`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from cachesync.entity import load_entities
from cachesync.errors import CacheSyncError
from cachesync.kafka.groups import unconsumed
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
_MAX_NAMED: Final = 5


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
    found: list[str] = []
    followers: dict[str, str] = {}
    for service in services:
        kafka = consumer(service)
        group = kafka["group.id"]
        if group in followers:
            found.append(
                f"caches {followers[group]} and {service} share the group {group}, so each gets only some "
                f"of the changes: set another group.id in the connection kafka_{service}, and reconcile both"
            )
        followers[group] = service
        found.append(_stream_problem(service, kafka, topics))
    return list(filter(None, [*found, asyncio.run(_relay_problem())]))


def _stream_problem(service: str, kafka: Mapping[str, Any], topics: Collection[str]) -> str:
    group = kafka["group.id"]
    try:
        left = unconsumed(kafka, group, topics)
    except CacheSyncError as error:
        return f"cache {service}: cannot look whether it is followed: {error}"
    if not left:
        return ""
    named = [*left[:_MAX_NAMED], *([f"{len(left) - _MAX_NAMED} more"] if len(left) > _MAX_NAMED else [])]
    return (
        f"cache {service} is not followed: group {group} has no consumer for {', '.join(named)}; "
        f"see the tasks apply_{service}_* of the DAG cache_sync, which must not be paused"
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
