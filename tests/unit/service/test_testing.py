"""What only the caches in memory do; the integration tests compare them with the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cachesync import InvalidValueError, SettingsError
from cachesync.testing import FakeAsyncCaches, FakeCaches

ENTITIES_FILE = Path(__file__).parents[3] / "entities.toml"


@dataclass
class Student:
    id: int
    name: str


def test_caches_for_code_that_blocks_are_the_same() -> None:
    caches = FakeCaches({"student": [{"id": 1, "name": "Ann"}]}, entities=ENTITIES_FILE)
    students = caches["student"]
    assert students.get("1", as_=Student) == Student(1, "Ann")
    with caches.following(object()) as followed:
        version = caches.put("student", {"id": 2, "name": "Bo"})
        caches.remove("student", 1)
        assert students.get(2) is None
        assert len(caches.changes_in(object())) == 2
    assert [change.version for change in followed.changes] == [version, version + 1]
    assert students.get_many([1, 2]) == {1: None, 2: {"id": 2, "name": "Bo"}}
    assert caches.committed([("student", 2, version)])


def test_caches_for_code_that_blocks_are_open_until_they_are_closed() -> None:
    caches = FakeCaches({}, entities=ENTITIES_FILE)
    students = caches["student"]
    with caches.open(), caches:
        assert students.get(1) is None
    with pytest.raises(SettingsError, match="the caches are closed; call `open`"):
        students.get(1)
    assert caches.open()["student"].get(1) is None


async def test_values_are_those_that_postgresql_would_write() -> None:
    row: dict[str, Any] = {
        "id": "x",
        "day": date(2026, 2, 3),
        "at": time(12, 30),
        "exact": Decimal("NaN"),
        "float": float("inf"),
        "bytes": b"\x00\xff",
    }
    async with FakeAsyncCaches({"student": [row]}, entities=ENTITIES_FILE) as caches:
        read = await caches["student"].get("x")
    assert read is not None
    assert str(read.pop("exact")) == "NaN"
    assert read == {
        "id": "x",
        "day": "2026-02-03",
        "at": "12:30:00",
        "float": float("inf"),
        "bytes": "\\x00ff",
    }


async def test_without_rows_a_key_is_text() -> None:
    async with FakeAsyncCaches({}, entities=ENTITIES_FILE) as caches:
        assert await caches["grade"].get((1, "Art")) is None


@pytest.mark.parametrize("row", [{"name": "Ann"}, {"id": None}, {"id": "x"}, {"id": 2, "name": object()}])
def test_rows_that_cannot_exist_are_rejected(row: dict[str, Any]) -> None:
    caches = FakeCaches({"student": [{"id": 1}]}, entities=ENTITIES_FILE)
    with pytest.raises(InvalidValueError):
        caches.put("student", row)
