"""The user's own transactions, from their beginning to what follows their commit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from types import TracebackType

    from cachesync.change import Change
    from cachesync.service.own_transactions import OwnTransaction

_T = TypeVar("_T")


@dataclass(slots=True)
class Followed:
    """What a transaction that was followed has changed, known at the end of the block.

    Attributes:
        changes: the committed changes, of the rows of all entities.
        cached: whether this service's slots of all rows that the transaction changed have that, or nothing.
            If not, because Redis did not confirm it or a slot has a newer row, reads can be older than the
            transaction until the stream has applied it.
    """

    changes: tuple[Change, ...] = ()
    cached: bool = False


class Settled(NamedTuple):
    """The outcome of bringing changes to the slots; the attributes are those of `Followed`."""

    changes: tuple[Change, ...]
    cached: bool


class Settle(Protocol):
    """Brings the changes of a transaction that has ended to the slots, and publishes them."""

    async def __call__(self, committed: Iterable[Change], uncertain: Iterable[Change], /) -> Settled:
        """Bring them.

        Args:
            committed: the committed changes.
            uncertain: changes that may have been committed or not.
        """


class ToTheEnd(Protocol):
    """Waits for work even if its caller gives up meanwhile, and lets it give up only then."""

    async def __call__(self, work: Coroutine[Any, Any, None], /) -> None:
        """Wait."""


class Following:
    """The block in which a transaction is followed.

    Not a generator: the coroutines of a caller that blocks are ended by an interruption, an asynchronous
    generator is not.

    Args:
        transaction: the transaction.
        settle: what follows its end.
        to_the_end: how to wait for its end, and for what follows; None if these wait for nothing.
    """

    def __init__(
        self, transaction: OwnTransaction, settle: Settle, to_the_end: ToTheEnd | None = None
    ) -> None:
        self._transaction = transaction
        self._settle = settle
        self._to_the_end = to_the_end
        self._result = Followed()

    async def __aenter__(self) -> Followed:
        return await self.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await (self.commit() if kind is None else self.undo())

    async def begin(self) -> Followed:
        """Begin the transaction; return what it has changed, which is known at the end of the block."""
        try:
            await self._wait(self._transaction.begin)
        except BaseException:
            try:
                await self._wait(self._transaction.undo)
            finally:
                self._transaction.close()
            raise
        return self._result

    async def commit(self) -> None:
        """Commit the transaction, and bring what it has changed to the slots."""
        await self._end(self._transaction.commit)

    async def undo(self) -> None:
        """Roll the transaction back because of an error, as far as it is not committed."""
        await self._end(self._transaction.undo)

    async def _end(self, end: Callable[[], Awaitable[None]]) -> None:
        await self._wait(lambda: ended(end, self._transaction, self._result, self._settle))

    async def _wait(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # Made and awaited in one line, between which no interruption can hit.
        await (work() if self._to_the_end is None else self._to_the_end(work()))


async def ended(
    end: Callable[[], Awaitable[None]], transaction: OwnTransaction, result: Followed, settle: Settle
) -> None:
    """End a transaction, and bring what it has changed to the slots, whatever the error at its end.

    Args:
        end: how to end it.
        transaction: the transaction.
        result: where to record what it has changed.
        settle: what follows its end.
    """
    try:
        await end()
    finally:
        # An interruption of a caller that blocks can hit any line.
        try:
            transaction.close()
        finally:
            result.changes, result.cached = await settle(transaction.committed, transaction.uncertain)


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for work even if the caller is canceled meanwhile, and let it be canceled only then.

    The user's connection is in use until the end.
    """
    task = asyncio.get_running_loop().create_task(work)
    canceled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            canceled = error
    if canceled is not None:
        # Whatever the work raised: the caller is gone.
        raise canceled from task.exception()
    return task.result()
