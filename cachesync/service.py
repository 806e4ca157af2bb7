"""One service's share of the system: its pool, its cache, its publisher, and a cache per entity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.cache import EntityCache
    from cachesync.settings import ServiceSettings


class Service:
    """Opened once per process, in its event loop.

    Attributes:
        caches: the caches by entity name.
    """

    caches: Mapping[str, EntityCache]

    @classmethod
    async def open(cls, settings: ServiceSettings) -> Self:
        """Connect, and compare the entities file with what is installed.

        Redis and Kafka may be away; PostgreSQL is needed.

        Raises:
            DeclarationError: the entities file is wrong.
            NotInstalledError: the database side is missing or does not fit the file.
            DatabaseUnavailableError: PostgreSQL does not answer.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Deliver what was published, mark it, give leases back, and disconnect."""
        raise NotImplementedError

    async def health(self) -> dict[str, bool]:
        """Whether `postgresql`, `redis` and `kafka` answer; each is asked with a short timeout."""
        raise NotImplementedError
