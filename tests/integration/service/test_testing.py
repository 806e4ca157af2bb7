"""The caches in memory behave as the real ones: each test runs on both."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest
from pydantic import BaseModel

from cachesync import AsyncCaches, InvalidValueError, RowTypeError, SettingsError, TransactionError
from cachesync.testing import FakeAsyncCaches
from tests.integration.conftest import ENTITIES_FILE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.redis import Redis

# Emptied before each test.
pytestmark = pytest.mark.usefixtures("redis_sa")

COURSE = UUID("7eaa7c00-8b48-44e0-9fce-e36818e26c88")
ROWS: dict[str, list[dict[str, Any]]] = {
    "student": [{"id": 1, "name": "Ann", "age": 20}, {"id": 2, "name": 'B"o', "age": None}],
    "course": [
        {
            "id": COURSE,
            "title": "Ärt",
            "fee": Decimal("12.50"),
            "starts_at": datetime(2026, 2, 3, 12, 30, 0, 250_000, tzinfo=UTC),
            "details": {"words": ["a", 1.5]},
            "capacity": 3,
            "internal_note": "not served",
        }
    ],
    "grade": [
        {"student_id": 1, "subject": "Art/Music", "points": 9, "remark": None, "certificate": "A/1"},
        {"student_id": 2, "subject": "Art", "points": 8, "remark": None, "certificate": None},
    ],
}
KEYS = {"student": ("id",), "course": ("id",), "grade": ("student_id", "subject")}


class Real:
    """The real caches, whose rows SQL changes."""

    def __init__(self, caches: AsyncCaches, session: asyncpg.Connection) -> None:
        self.caches = caches
        self.session = session

    async def put(self, entity: str, row: dict[str, Any]) -> int:
        names, key = ", ".join(row), ", ".join(KEYS[entity])
        values = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        changed = ", ".join(f"{name} = excluded.{name}" for name in row)
        version: int = await self.session.fetchval(
            f"INSERT INTO public.{entity} ({names}) VALUES ({values})"
            f" ON CONFLICT ({key}) DO UPDATE SET {changed} RETURNING row_version",
            *row.values(),
        )
        return version

    async def remove(self, entity: str, key: Any) -> None:
        await self.session.execute(f"DELETE FROM public.{entity} WHERE {KEYS[entity][0]} = $1", key)


class Fake:
    """The caches in memory."""

    def __init__(self, caches: FakeAsyncCaches) -> None:
        self.caches = caches
        self.session = object()

    async def put(self, entity: str, row: dict[str, Any]) -> int:
        return self.caches.put(entity, row)

    async def remove(self, entity: str, key: Any) -> None:
        self.caches.remove(entity, key)


@pytest.fixture
async def real(sample: str, sa_dsn: str, redis_sa: Redis) -> AsyncIterator[Real]:
    # The login of the service may not write every column.
    connection = await asyncpg.connect(sample)
    await connection.set_type_codec("jsonb", encoder=_json, decoder=str, schema="pg_catalog")
    async with AsyncCaches(
        "sa", redis=f"{redis_sa.url}?socket_timeout=10", database=sa_dsn, entities=ENTITIES_FILE
    ) as caches:
        real = Real(caches, connection)
        for entity, rows in ROWS.items():
            for row in rows:
                await real.put(entity, row)
        yield real
    await connection.close()


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with FakeAsyncCaches(ROWS, entities=ENTITIES_FILE) as caches:
        yield Fake(caches)


@pytest.fixture(params=["real", "fake"])
def world(request: pytest.FixtureRequest) -> Real | Fake:
    one: Real | Fake = request.getfixturevalue(request.param)
    return one


def _json(_: object) -> str:
    return '{"words": ["a", 1.5]}'


@dataclass
class Student:
    id: int
    name: str
    age: int | None


class Course(BaseModel):
    id: UUID
    fee: Decimal
    starts_at: datetime


async def test_rows_are_dicts_of_the_values_of_json_or_models(world: Real | Fake) -> None:
    students, courses = world.caches["student"], world.caches["course"]
    assert await students.get(1) == {"id": 1, "name": "Ann", "age": 20}
    assert await students.get(3) is None
    assert await students.get(2, as_=Student) == Student(2, 'B"o', None)
    assert await courses.get(COURSE) == {
        "id": str(COURSE),
        "title": "Ärt",
        "fee": Decimal("12.50"),
        "starts_at": "2026-02-03T12:30:00.25+00:00",
        "details": {"words": ["a", 1.5]},
        "capacity": 3,
    }
    assert await courses.get(COURSE, as_=Course) == Course(**ROWS["course"][0])
    with pytest.raises(RowTypeError, match="the row with the key '1' is no Course"):
        await students.get(1, as_=Course)


async def test_every_spelling_of_a_key_names_the_row(world: Real | Fake) -> None:
    students, courses, grades = (world.caches[entity] for entity in ROWS)
    ann = {"id": 1, "name": "Ann", "age": 20}
    keys: list[int | str] = [3, "1", 1, "3"]
    assert await students.get_many(keys) == {3: None, "1": ann, 1: ann, "3": None}
    assert list(await students.get_many(iter([2, 1]))) == [2, 1]
    assert await courses.get(f"{{{str(COURSE).upper()}}}") == await courses.get(COURSE)
    assert await grades.get((1, "Art/Music")) == await grades.get("1/Art~1Music") == ROWS["grade"][0]
    wrong: Any
    for wrong in (None, True, 1.0, b"1", "x", "", [1, 2], (1, 2), 10**5000):
        with pytest.raises(InvalidValueError):
            await students.get(wrong)
    with pytest.raises(InvalidValueError):
        await grades.get_many([(1, "Art"), (1,)])


async def test_a_row_is_found_by_its_unique_value(world: Real | Fake) -> None:
    grades = world.caches["grade"]
    assert await grades.get_by(certificate="A/1") == ROWS["grade"][0]
    assert await grades.get_by(certificate="B") is None
    async with world.caches.following(world.session):
        await world.put("grade", ROWS["grade"][1] | {"certificate": "B"})
    assert await grades.get_by(certificate="B") == ROWS["grade"][1] | {"certificate": "B"}
    with pytest.raises(InvalidValueError, match="no unique lookup by subject"):
        await grades.get_by(subject="Art")


async def test_a_transaction_counts_from_the_end_of_its_block_on(world: Real | Fake) -> None:
    students = world.caches["student"]
    async with world.caches.following(world.session) as followed:
        await world.put("student", {"id": 1, "name": "Ann", "age": 21})
        await world.put("grade", {"student_id": 1, "subject": "~", "points": 1, "remark": "x"})
        await world.remove("student", 2)
        assert (await students.get_many([1, 2]))[1] == {"id": 1, "name": "Ann", "age": 20}
        assert not followed.changes
        cached_in_the_block = followed.cached
    assert (cached_in_the_block, followed.cached) == (False, True)
    assert [(change.entity, change.key, change.operation) for change in followed.changes] == [
        ("student", "1", "upsert"),
        ("grade", "1/~0", "upsert"),
        ("student", "2", "delete"),
    ]
    assert await students.get_many([1, 2]) == {1: {"id": 1, "name": "Ann", "age": 21}, 2: None}
    assert (await world.caches["grade"].get((1, "~"))) is not None


async def test_a_transaction_that_fails_counts_for_nothing(world: Real | Fake) -> None:
    async def fail() -> None:
        async with world.caches.following(world.session):
            await world.put("student", {"id": 1, "name": "Ann", "age": 21})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with world.caches.following(world.session):
        with pytest.raises(TransactionError, match="already in a transaction"):
            async with world.caches.following(world.session):
                pytest.fail("it was followed")
    assert await world.caches["student"].get(1) == {"id": 1, "name": "Ann", "age": 20}


async def test_the_halves_of_a_block_are_checked(world: Real | Fake) -> None:
    async with world.caches.following(world.session):
        version = await world.put("student", {"id": 1, "name": "Ann", "age": 21})
        changes = await world.caches.changes_in(world.session)
        assert [(change.key, change.version) for change in changes] == [("1", version)]
    assert await world.caches.committed(changes)
    assert await world.caches.committed([("student", "1", version)])
    wrong: Any
    for wrong in (("student", "x", 1), ("student", 1, 0), ("student", 1), None):
        with pytest.raises(InvalidValueError):
            await world.caches.committed([wrong])
    with pytest.raises(SettingsError, match="did you mean 'student'"):
        await world.caches.committed([("students", 1, 1)])


async def test_caches_are_open_once(world: Real | Fake) -> None:
    with pytest.raises(SettingsError, match="already open"):
        await world.caches.open()
    with pytest.raises(SettingsError, match="did you mean 'student'"):
        world.caches["students"]
    await world.caches.close()
    with pytest.raises(SettingsError, match="not open"):
        world.caches["student"]
    await world.caches.open()
    assert await world.caches["student"].get(3) is None
