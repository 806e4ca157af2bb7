"""Reads and writes of rows whose keys have several columns or a type with many spellings."""

from __future__ import annotations

import json
import secrets
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import redis as redis_client

from cachesync.entity import load_entities
from cachesync.errors import (
    DuplicateRowError,
    InvalidValueError,
    RowNotFoundError,
    VersionMismatchError,
)
from cachesync.install.installer import install
from cachesync.service.cache import EntityCache, Outcome
from cachesync.service.row_input import RowInput
from local.silent import Silent
from tests.integration.service.test_cache import installed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import asyncpg

    from cachesync.service.service import Service
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def slots(redis_sa: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sa.url)


@pytest.fixture
async def grades(open_service: OpenService) -> AsyncIterator[EntityCache]:
    async with open_service("sa") as service:
        yield service.caches["grade"]


def grade(subject: str, **values: Any) -> RowInput:
    return RowInput.from_mapping({"student_id": 7, "subject": subject, **values})


@pytest.mark.parametrize("subject", ["Art", "Art/Music", "~1", "", "'; --", "a:b", "\\", " ", "ä\n"])
async def test_every_operation_uses_the_slot_that_the_text_of_the_key_names(
    grades: EntityCache, slots: redis_client.Redis, admin: asyncpg.Connection, subject: str
) -> None:
    text = "7/" + subject.replace("~", "~0").replace("/", "~1")
    name = f"sa:grade:{text}"
    assert (await grades.read(("7", subject))).row is None
    assert slots.get(name) == b"A"
    created = await grades.insert(grade(subject, points=1))
    assert created.row is not None
    assert (created.row.key, created.cached) == (text, True)
    for key in (text, ("7", subject)):
        assert (await grades.read(key)).outcome is Outcome.HIT
        replaced = await grades.replace(key, grade(subject, points=2), frozenset({created.version}))
        with pytest.raises(VersionMismatchError):
            await grades.merge(key, RowInput.from_json(b'{"points": 3}'), frozenset({created.version}))
        created = await grades.merge(key, RowInput.from_json(b'{"points": 3}'), frozenset({replaced.version}))
        read = await grades.read(key)
        assert read.row is not None
        assert (read.outcome, read.row.version, json.loads(read.row.payload)["points"]) == (
            Outcome.HIT,
            created.version,
            3,
        )
    with pytest.raises(DuplicateRowError) as duplicate:
        await grades.insert(grade(subject))
    assert duplicate.value.columns == ("student_id", "subject")
    await grades.delete(text, None)
    with pytest.raises(RowNotFoundError):
        await grades.delete(("7", subject), None)
    assert slots.keys("sa:grade:*") == []
    assert (await grades.replace(text, grade(subject), None)).created
    keys = await admin.fetchval("SELECT array_agg(DISTINCT key) FROM cachesync.change_log")
    assert keys == [text]


async def test_pages_are_in_the_order_of_the_columns(grades: EntityCache, admin: asyncpg.Connection) -> None:
    await admin.execute(
        "INSERT INTO grade (student_id, subject)"
        " SELECT i, s FROM generate_series(-1, 11) AS i CROSS JOIN unnest('{a/b, a, ~, \"\"}'::text []) AS s"
    )
    keys = await admin.fetch("SELECT student_id, subject FROM grade ORDER BY student_id, subject")
    seen: list[str] = []
    more = True
    while more:
        page = await grades.page(seen[-1] if seen else None, 5)
        seen += [row.key for row in page]
        more = page.more
    assert [grades.key.parts(key) for key in seen] == [[str(key[0]), key[1]] for key in keys]
    assert [row.key for row in await grades.page(("11", "a/b"), 5)] == ["11/~0"]


@pytest.mark.parametrize("key", ["7", "7/a/b", "x/a", ("7",), ("7", "a\0"), ("7", "a", "b"), 7, None])
async def test_a_key_that_no_row_can_have_is_rejected(
    grades: EntityCache, slots: redis_client.Redis, key: Any
) -> None:
    row = RowInput.from_mapping({})
    for call in (grades.read(key), grades.replace(key, row, None), grades.delete(key, None)):
        with pytest.raises(InvalidValueError):
            await call
    assert slots.keys("sa:grade:*") == []


@pytest.mark.parametrize(
    "row", [{"student_id": 8}, {"subject": "Music"}, {"student_id": 7, "subject": "Art/"}]
)
async def test_a_row_with_another_part_of_the_key_is_rejected(
    grades: EntityCache, row: dict[str, Any]
) -> None:
    await grades.insert(grade("Art"))
    for write in (grades.replace, grades.merge):
        with pytest.raises(InvalidValueError, match=r"must be '(7|Art)'"):
            await write("7/Art", RowInput.from_mapping(row), None)
    patched = await grades.merge("7/Art", RowInput.from_mapping({"student_id": 7, "points": 9}), None)
    assert patched.row is not None
    assert b'"points":9' in patched.row.payload


async def test_a_part_of_the_key_that_changes_in_the_database_moves_the_row(
    grades: EntityCache, admin: asyncpg.Connection, slots: redis_client.Redis
) -> None:
    """A trigger of the table gives the row another key than the writer."""
    await admin.execute(
        "CREATE FUNCTION upper_subject() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.subject := upper(NEW.subject); RETURN NEW; END';"
        "CREATE TRIGGER upper_subject BEFORE INSERT OR UPDATE ON grade"
        " FOR EACH ROW EXECUTE FUNCTION upper_subject()"
    )
    assert (await grades.read("7/a~1b")).row is None
    assert (await grades.read("7/A~1B")).row is None
    created = await grades.insert(grade("a/b"))
    assert created.row is not None
    assert created.row.key == "7/A~1B"
    assert set(slots.scan_iter("sa:grade:*")) <= {b"sa:grade:7/a~1b"}
    read = await grades.read("7/A~1B")
    assert (read.row, read.outcome) == (created.row, Outcome.MISS)


TYPES = (
    "CREATE TYPE mood AS ENUM ('so/so', 'ok'); CREATE TABLE every_key ("
    "code char(4), amount numeric, fee numeric(6, 2), day date, at timestamptz, mood mood, flag bool,"
    "note text,"
    "PRIMARY KEY (code, amount, fee, day, at, mood, flag))"
)
NAMES = ["code", "amount", "fee", "day", "at", "mood", "flag"]
SPELLINGS: list[tuple[str, ...]] = [
    ("ab", "1.5", "2", "2026-02-03", "2026-02-03T12:30:00Z", "so/so", "true"),
    ("ab  ", "1.50", "2.00", "20260203", "2026-02-03 14:30:00+02", "so/so", "true"),
]
TEXT = "ab/1.5/2/2026-02-03/2026-02-03T12:30:00Z/so~1so/true"


@asynccontextmanager
async def every_key(
    admin: asyncpg.Connection, open_service: OpenService, folder: Path
) -> AsyncIterator[EntityCache]:
    await admin.execute(TYPES)
    declaration = (
        f'[every_key]\ntable = "every_key"\nkey = {json.dumps(NAMES)}\n'
        'ttl = "1h"\nabsent_ttl = "1m"\npath = "/e"\n'
    )
    async with installed(declaration, admin, open_service, folder) as service:
        yield service.caches["every_key"]


async def test_every_spelling_of_a_key_names_the_same_row_and_slot(
    admin: asyncpg.Connection, open_service: OpenService, tmp_path: Path, slots: redis_client.Redis
) -> None:
    values = ("ab", Decimal("1.500"), Decimal(2), date(2026, 2, 3), datetime(2026, 2, 3, 12, 30, tzinfo=UTC))
    row = RowInput.from_mapping(dict(zip(NAMES, [*values, "so/so", True], strict=True)))
    async with every_key(admin, open_service, tmp_path) as cache:
        assert (await cache.read(SPELLINGS[1])).row is None
        assert slots.keys("sa:every_key:*") == [f"sa:every_key:{TEXT}".encode()]
        written = await cache.insert(row)
        assert written.row is not None
        assert written.row.key == TEXT
        keys: list[str | tuple[str, ...]] = [*SPELLINGS, TEXT]
        for key in keys:
            assert (await cache.read(key)).outcome is Outcome.HIT
            assert (await cache.merge(key, RowInput.from_json(b'{"note": "x"}'), None)).cached
            assert not (await cache.replace(key, row, None)).created
        assert [found.key for found in await cache.page(None, 10)] == [TEXT]
        assert await cache.page(TEXT, 10) == []
        await cache.delete(SPELLINGS[1], None)
        assert slots.keys("sa:every_key:*") == []


ORDERS = {
    'text COLLATE "C"': ["a", "B", "~", "", "\u00e4", "a\u0308", "z", "Z", "/", "a/b", "\n"],
    'text COLLATE "ucs_basic"': ["a", "B", "~", "", "\u00e4", "a\u0308", "z", "Z", "/", "a/b", "\n"],
    "char(3)": ["a", "ab", "", "\u00e4", "a/", "~", "\t"],
    "mood": ["ok", "so/so"],
    "numeric": ["NaN", "Infinity", "-Infinity", "0.10", "1e3", "-7", "12345678901234567890.5"],
    "date": ["infinity", "-infinity", "0044-03-15 BC", "12026-01-01", "2026-01-01"],
    "timestamptz": [
        "infinity",
        "-infinity",
        "0044-03-15 00:00Z BC",
        "12026-01-01 00:00Z",
        "2026-01-01 00:00+02",
    ],
    "bool": ["true", "false"],
}


@pytest.mark.parametrize("several", [False, True], ids=["one column", "several columns"])
@pytest.mark.parametrize("key_type", ORDERS)
async def test_pages_of_every_type_have_each_row_once_and_each_row_can_be_read(  # noqa: PLR0917
    admin: asyncpg.Connection,
    open_service: OpenService,
    tmp_path: Path,
    slots: redis_client.Redis,
    key_type: str,
    several: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    key = ["a", "b", "c"] if several else ["a"]
    columns = ", ".join(f"{name} {key_type}" for name in key)
    await admin.execute(
        "CREATE TYPE mood AS ENUM ('so/so', 'ok');"
        f"CREATE TABLE ordered ({columns}, note text, PRIMARY KEY ({', '.join(key)}))"
    )
    sources = ", ".join(f"unnest($1::text []) AS {name} (v)" for name in key)
    values = ", ".join(f"{name}.v::{key_type.partition(' COLLATE')[0]}" for name in key)
    await admin.execute(f"INSERT INTO ordered SELECT {values} FROM {sources}", ORDERS[key_type])
    declaration = (
        f'[ordered]\ntable = "ordered"\nkey = {json.dumps(key)}\nttl = "1h"\nabsent_ttl = "1m"\npath = "/o"\n'
    )
    async with installed(declaration, admin, open_service, tmp_path) as service:
        cache = service.caches["ordered"]
        seen: list[str] = []
        more = True
        while more:
            page = await cache.page(seen[-1] if seen else None, 3)
            seen += [row.key for row in page]
            more = len(page) == 3
        text_of_key = cache.key.text("t")
        in_order = await admin.fetch(
            f"SELECT {text_of_key} FROM ordered AS t ORDER BY {cache.key.listed('t')}"
        )
        assert seen == [record[0] for record in in_order]
        assert len(set(seen)) == len(ORDERS[key_type]) ** len(key)
        for text in seen[:40]:
            assert (await cache.read(text)).row is not None
            patch = RowInput.from_json(b'{"note": "x"}')
            patched = await cache.merge(tuple(cache.key.parts(text)), patch, None)
            assert patched.row is not None
            assert patched.row.key == text
            assert (await cache.read(text)).outcome is Outcome.HIT
        assert set(slots.scan_iter("sa:ordered:*")) == {f"sa:ordered:{text}".encode() for text in seen[:40]}


async def test_normal_forms_of_unicode_are_different_keys(
    grades: EntityCache, slots: redis_client.Redis
) -> None:
    subjects = ("\u00e4", "a\u0308", "\ufb01", "fi", "\u200b", "")
    for number, subject in enumerate(subjects):
        await grades.insert(grade(subject, points=number))
    for number, subject in enumerate(subjects):
        read = await grades.read(("7", subject))
        assert read.row is not None
        assert json.loads(read.row.payload)["points"] == number
    assert len(list(slots.scan_iter("sa:grade:*"))) == len(subjects)


async def test_a_key_that_is_too_long_for_the_index_is_refused_and_is_that_of_no_row(
    grades: EntityCache, slots: redis_client.Redis
) -> None:
    # It cannot be compressed.
    subject = secrets.token_hex(9000)
    with pytest.raises(InvalidValueError):
        await grades.insert(grade(subject))
    assert slots.keys("sa:grade:*") == []
    assert (await grades.read(("7", subject))).row is None


async def test_a_label_that_is_renamed_names_other_slots_after_an_installation(
    admin: asyncpg.Connection, open_service: OpenService, tmp_path: Path
) -> None:
    fingerprint = "SELECT fingerprint FROM cachesync.entity WHERE name = 'every_key'"
    async with every_key(admin, open_service, tmp_path) as cache:
        row = dict(zip(NAMES, SPELLINGS[0], strict=True)) | {"flag": True}
        await cache.insert(RowInput.from_mapping(row))
        before = await admin.fetchval(fingerprint)
        await admin.execute("ALTER TYPE mood RENAME VALUE 'so/so' TO 'fair'")
        await install(admin, load_entities(tmp_path / "entities.toml"), Silent())
        assert await admin.fetchval(fingerprint) != before
    async with open_service("sa", cachesync_entities=tmp_path / "entities.toml") as service:
        cache = service.caches["every_key"]
        renamed = (*SPELLINGS[0][:5], "fair", "true")
        read = await cache.read(renamed)
        assert read.row is not None
        assert read.row.key == TEXT.replace("so~1so", "fair")
        with pytest.raises(InvalidValueError):
            await cache.read(SPELLINGS[0])
        await cache.delete(renamed, None)
    logged = await admin.fetch("SELECT key, operation FROM cachesync.change_log ORDER BY version")
    # The caches have started over.
    assert [tuple(line) for line in logged] == [
        (TEXT, "upsert"),
        (None, "truncate"),
        (read.row.key, "delete"),
    ]
