"""An entity's cache in one service: reads load lazily, writes go through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesync.catalogue import Column
    from cachesync.change import Row
    from cachesync.entity import Entity


class Outcome(StrEnum):
    """How a read was answered; the value of the `X-Cache` header."""

    HIT = "HIT"
    MISS = "MISS"
    BYPASS = "BYPASS"


@dataclass(frozen=True, slots=True)
class Read:
    """A read's answer; `row` is None where no such row exists."""

    outcome: Outcome
    row: Row | None


@dataclass(frozen=True, slots=True)
class Written:
    """An acknowledged write.

    Attributes:
        row: the row after it; None after a delete.
        version: the version that it drew.
        created: whether the row did not exist before.
        cached: whether its cache step went through; if not, the stream's lag bounds older reads.
    """

    row: Row | None
    version: int
    created: bool
    cached: bool


class EntityCache:
    """Reads and writes one entity's rows through this service's cache.

    A precondition (`expected`) is None: none; an empty set: the row must exist; otherwise it must
    have one of these versions.
    """

    entity: Entity
    columns: tuple[Column, ...]
    key_column: Column

    async def read(self, key: str) -> Read:
        """The row with this canonical key.

        Raises:
            DatabaseUnavailableError: it is not cached, and the database cannot be asked.
        """
        raise NotImplementedError

    async def page(self, after: str | None, limit: int) -> list[Row]:
        """At most `limit` rows in key order whose keys follow `after`, from the database."""
        raise NotImplementedError

    async def insert(self, body: bytes, columns: Sequence[str]) -> Written:
        """Insert the row of a JSON object; `columns` are its members, in any order.

        Raises:
            DuplicateRowError, ConstraintViolatedError, InvalidValueError: the row is refused.
            DatabaseUnavailableError: the database cannot be asked.
        """
        raise NotImplementedError

    async def replace(
        self, key: str, body: bytes, columns: Sequence[str], expected: frozenset[int] | None
    ) -> Written:
        """Make the row be the JSON object, inserting it where it is missing and nothing is expected.

        Columns that the object leaves out get their default.

        Raises:
            VersionMismatchError: `expected` is not met.
            and those of `insert`.
        """
        raise NotImplementedError

    async def merge(
        self, key: str, body: bytes, columns: Sequence[str], expected: frozenset[int] | None
    ) -> Written:
        """Apply a JSON merge patch (RFC 7396) to the row.

        Raises:
            RowNotFoundError: no such row.
            VersionMismatchError: `expected` is not met.
            and those of `insert`.
        """
        raise NotImplementedError

    async def delete(self, key: str, expected: frozenset[int] | None) -> Written:
        """Delete the row.

        Raises:
            RowNotFoundError: no such row.
            VersionMismatchError: `expected` is not met.
            ConstraintViolatedError: another table refers to it.
            DatabaseUnavailableError: the database cannot be asked.
        """
        raise NotImplementedError
