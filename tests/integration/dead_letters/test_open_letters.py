"""The open letters are known without reading all of them again, on a real PostgreSQL and Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesync.dead_letters.open_letters import OpenLetters
from cachesync.dead_letters.reader import DeadLetterReader
from cachesync.kafka.topics import PARKING_LOT

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import pytest

    from cachesync.dead_letters.letter import Letter
    from tests.integration.post import Post


async def test_letters_that_are_sent_and_closed_later_are_noticed(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post.put(b"7", 20)
    post.put(b"8", 30, topic=PARKING_LOT, attempt="5")
    letters = OpenLetters(post.kafka)

    async def mine() -> list[tuple[str | None, int | None, bool]]:
        found = await letters.refresh(post.worker)
        return [(one.key, one.version, one.parked) for one in found if one.service == post.service]

    assert sorted(await mine()) == [("7", 20, False), ("8", 30, True)]
    batches = DeadLetterReader.batches
    read_again: list[int] = []

    def counting(
        reader: DeadLetterReader, topic: str, size: int, read: Mapping[int, int] | None = None
    ) -> Generator[list[Letter]]:
        for batch in batches(reader, topic, size, read):
            if read is not None:  # The retrier reads everything.
                read_again.append(len(batch))
            yield batch

    monkeypatch.setattr(DeadLetterReader, "batches", counting)
    assert len(await mine()) == 2
    with post.open() as (retrier, _):
        await retrier.discard([PARKING_LOT], post.mine, "known")
    assert await mine() == [("7", 20, False)]
    assert read_again == []
    post.put(b"9", 40)
    assert sorted(await mine()) == [("7", 20, False), ("9", 40, False)]
    assert read_again == [1]
    letters.close()
