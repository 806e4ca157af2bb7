"""Marking changes as published."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cachesync.service.publisher import Publisher
from tests.integration.changes import change

if TYPE_CHECKING:
    from cachesync.entity import Entity


async def test_closing_a_publisher_completes_the_marking_in_progress(
    topics: str, entities: dict[str, Entity]
) -> None:
    marking = asyncio.Event()
    closing = asyncio.Event()
    marked: list[int] = []

    async def mark(versions: list[int]) -> None:
        marking.set()
        await closing.wait()
        marked.extend(versions)

    publisher = Publisher({"bootstrap.servers": topics}, {}, mark)
    publisher.publish(entities["student"].topic, change("1", 30))
    async with asyncio.timeout(20):
        await marking.wait()
    close = asyncio.create_task(publisher.close())
    await asyncio.sleep(0.5)
    closing.set()
    await close
    assert marked == [30]
