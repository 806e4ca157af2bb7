"""What follows of a transaction, apart from its SQL."""

from __future__ import annotations

import asyncio

import pytest

from cachesync.service.following import to_the_end


async def test_work_goes_on_although_its_caller_is_canceled_again_and_again() -> None:
    go_on = asyncio.Event()
    done = []

    async def work() -> None:
        await go_on.wait()
        done.append(True)

    waiting = asyncio.create_task(to_the_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == [True]


async def test_the_error_of_work_whose_caller_was_canceled_is_the_cause_of_the_cancellation() -> None:
    go_on = asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        raise ZeroDivisionError

    waiting = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError) as canceled:
        await waiting
    assert isinstance(canceled.value.__cause__, ZeroDivisionError)


async def test_the_result_and_the_error_of_work_are_those_of_the_call() -> None:
    async def work(divisor: int) -> int:
        return 1 // divisor

    assert await to_the_end(work(1)) == 1
    with pytest.raises(ZeroDivisionError):
        await to_the_end(work(0))
