"""How what the servers say becomes parts of the answers."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from cachesync.overview.assemble import letters_of

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def test_letters_of_which_each_has_another_reason_are_a_few_groups_that_miss_none() -> None:
    letters: list[Any] = [
        SimpleNamespace(
            service="sb",
            entity="student",
            stage="row",
            parked=False,
            error="no such table" if number < 50 else f"row {number} is invalid",
            first_failed_at=NOW,
            last_failed_at=NOW,
            not_before=NOW,
            id=f"dead-letters:0:{number}",
        )
        for number in range(10_000)
    ]
    answer = letters_of(letters, NOW)
    assert answer.open == sum(group.letters for group in answer.groups) == 10_000
    assert len(answer.groups) == 11
    assert answer.groups[0].reason.startswith("9,941 other reasons, such as: row ")
    assert (answer.groups[1].reason, answer.groups[1].letters) == ("no such table", 50)
