"""Reads the state of the whole system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cachesync.entity import Entity
    from cachesync.overview.models import KeyReport, Point, Status
    from cachesync.slots.clients import BlockingRedis


class Overview:
    """Reads the state of the whole system, for people. It changes nothing.

    It keeps its Kafka clients and what it has read of the dead letters: a program that asks more than once,
    such as the page, keeps one for as long as it runs. Its methods can be called at the same time.

    Args:
        dsn: the database, with a login that has the role `cachesync_worker`; None to use the variables
            PGHOST, PGUSER and so on.
        kafka: librdkafka's settings for connecting to the brokers.
        clients: each service's Redis, by the service's name.
        groups: the consumer group of each service's cache; those that are missing have the usual name.
        entities: the declared entities by name.
    """

    def __init__(
        self,
        dsn: str | None,
        kafka: Mapping[str, Any],
        clients: Mapping[str, BlockingRedis],
        entities: Mapping[str, Entity],
        groups: Mapping[str, str] | None = None,
    ) -> None:
        raise NotImplementedError

    async def status(self) -> Status:
        """Return the overview of all caches. Servers that do not respond are in its `unavailable`."""
        raise NotImplementedError

    async def history(
        self, period: Literal["hour", "day"], service: str | None = None, entity: str | None = None
    ) -> tuple[Point, ...]:
        """Return what the live check has seen of each cache, by minute; for a day, by quarter of an hour.

        Args:
            period: how far to look back.
            service: only this cache.
            entity: only this entity; None for all of them together.

        Raises:
            DatabaseUnavailableError: the database is unavailable.
        """
        raise NotImplementedError

    async def show(self, entity: str, key: str | Sequence[str]) -> KeyReport:
        """Return what is known of one key, and a verdict.

        Args:
            entity: the name of the entity.
            key: the text of the key in any spelling, or the text of each column.

        Raises:
            SettingsError: the entity is not declared; the text has a name that may be meant.
            InvalidValueError: this cannot be the key of a row.
            NotInstalledError: the entity is not installed.
            DatabaseUnavailableError: the database is unavailable.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the Kafka clients."""
        raise NotImplementedError
