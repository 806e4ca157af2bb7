"""Reads of rows by their values in unique columns."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis as redis_client

from cachesync import AsyncCaches
from cachesync.change import Change, Operation
from cachesync.entity import load_entities
from cachesync.errors import DuplicateRowError, InvalidValueError, NotInstalledError
from cachesync.install.checks import check
from cachesync.install.installer import install
from cachesync.reconcile.rows import ComparedRows
from cachesync.service.cache import EntityCache, Outcome
from cachesync.service.row_input import RowInput
from cachesync.service.settling import Settler
from cachesync.slots.batch import Applier
from cachesync.slots.clients import blocking_client
from cachesync.slots.single import Slots
from cachesync.sync import Caches
from local.silent import Silent
from tests.integration.refusals import refusing
from tests.integration.service.test_cache import installed
from tests.integration.service.test_keys import ORDERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from cachesync.service.service import Service
    from local.postgres import Postgres
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]

TABLE = (
    "CREATE TABLE account (id bigint PRIMARY KEY, email text UNIQUE, tenant integer, slug varchar(20),"
    "note text, UNIQUE (slug, tenant) DEFERRABLE INITIALLY DEFERRED)"
)
DECLARATION = (
    '[account]\ntable = "account"\nkey = "id"\nunique = ["email", ["tenant", "slug"]]\nttl = "1h"\n'
    'absent_ttl = "1m"\npath = "/accounts"\n'
)
ANN = "sa:account@email:ann@example.com"


@pytest.fixture
def slots(redis_sa: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sa.url)


@pytest.fixture
async def accounts(
    admin: asyncpg.Connection, open_service: OpenService, tmp_path: Path
) -> AsyncIterator[EntityCache]:
    await admin.execute(TABLE)
    async with installed(DECLARATION, admin, open_service, tmp_path) as service:
        yield service.caches["account"]


def account(number: int, **values: Any) -> RowInput:
    return RowInput.from_mapping({"id": number, **values})


async def find(accounts: EntityCache, email: str = "ann@example.com") -> tuple[Outcome, str | None]:
    """Find an account; return how the read was answered, and the key of the account."""
    read = await accounts.find(["email"], (email,))
    return read.outcome, None if read.row is None else read.row.key


async def settled(accounts: EntityCache, email: str = "ann@example.com") -> str | None:
    """Find an account until the slots answer; return the key of the account."""
    while True:
        outcome, key = await find(accounts, email)
        if outcome is Outcome.HIT:
            return key


async def test_value_is_found_through_its_slot_and_that_of_its_row(
    accounts: EntityCache, slots: redis_client.Redis
) -> None:
    assert await settled(accounts) is None
    assert slots.get(ANN) == b"A"
    created = await accounts.insert(account(7, email="ann@example.com", tenant=1, slug="a/b"))
    assert created.cached
    # The write has emptied *absent* before it was acknowledged.
    assert await find(accounts) != (Outcome.HIT, None)
    assert await settled(accounts) == "7"
    slot = slots.get(ANN)
    assert isinstance(slot, bytes)
    assert slot[28:] == b"7"
    for columns, value in ((["tenant", "slug"], ("1", "a/b")), (["slug", "tenant"], ("a/b", "1"))):
        found = await accounts.find(columns, value)
        assert found.row == created.row
    assert slots.exists("sa:account@tenant,slug:1/a~1b")


@pytest.mark.parametrize("refuses", [False, True])
async def test_lookup_that_is_declared_again_does_not_have_what_nobody_has_followed(
    admin: asyncpg.Connection,
    sa_dsn: str,
    redis_sa: Redis,
    tmp_path: Path,
    slots: redis_client.Redis,
    *,
    refuses: bool,
) -> None:
    file = tmp_path / "entities.toml"
    file.write_text(DECLARATION)
    await admin.execute(TABLE)
    await install(admin, load_entities(file), Silent())

    def caches(declaration: str = DECLARATION) -> AsyncCaches:
        file.write_text(declaration)
        return AsyncCaches("sa", redis=f"{redis_sa.url}?socket_timeout=10", database=sa_dsn, entities=file)

    async with caches() as declared:
        while slots.get(ANN) != b"A":
            assert await declared["account"].get_by(email="ann@example.com") is None
    async with caches():
        # The usual restart.
        assert slots.get(ANN) == b"A"
    undeclared = caches(DECLARATION.replace('unique = ["email", ["tenant", "slug"]]\n', ""))
    with refusing(slots, "no deletes") if refuses else nullcontext():
        await undeclared.open()
    cached = False
    while not cached:
        async with undeclared.following(admin) as followed:
            await admin.execute(
                "INSERT INTO account VALUES (7, 'ann@example.com') ON CONFLICT (id) DO UPDATE SET note = 'x'"
            )
        cached = followed.cached
    await undeclared.close()
    assert slots.get(ANN) == b"A"
    async with caches() as declared:
        found = await declared["account"].get_by(email="ann@example.com")
    assert found is not None
    assert found["id"] == 7


async def test_of_two_processes_that_declare_others_at_the_same_time_neither_is_the_last(
    admin: asyncpg.Connection,
    sa_dsn: str,
    redis_sa: Redis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "entities.toml"
    slots = redis_client.Redis.from_url(redis_sa.url)

    def caches(declaration: str = DECLARATION) -> AsyncCaches:
        file.write_text(declaration)
        return AsyncCaches("sa", redis=f"{redis_sa.url}?socket_timeout=10", database=sa_dsn, entities=file)

    await admin.execute(TABLE)
    one, other = caches(), caches(DECLARATION.replace('"email", ', ""))
    await install(admin, load_entities(file), Silent())
    begun, opened = asyncio.Event(), asyncio.Event()
    empty = Settler._change_all  # noqa: SLF001

    async def empty_later(self: Settler, prefix: str, version: bytes) -> None:
        if not begun.is_set():
            begun.set()
            await opened.wait()
        await empty(self, prefix, version)

    monkeypatch.setattr(Settler, "_change_all", empty_later)
    opening = asyncio.create_task(one.open())
    await begun.wait()
    async with other:
        opened.set()
        await opening
        while slots.get(ANN) != b"A":
            assert await one["account"].get_by(email="ann@example.com") is None
        await one.close()
        async with other.following(admin):
            await admin.execute("INSERT INTO account VALUES (7, 'ann@example.com')")
    async with caches() as declared:
        assert await declared["account"].get_by(email="ann@example.com") is not None


async def test_without_redis_at_the_opening_no_lookup_is_believed_before_it_is_followed(
    admin: asyncpg.Connection, open_service: OpenService, tmp_path: Path, slots: redis_client.Redis
) -> None:
    await admin.execute(TABLE)
    slots.set(ANN, b"A")
    slots.execute_command("ACL", "SETUSER", "default", "-set")
    try:
        async with installed(DECLARATION, admin, open_service, tmp_path) as service:
            accounts = service.caches["account"]
            await admin.execute("INSERT INTO account VALUES (7, 'ann@example.com')")
            assert slots.get(ANN) == b"A"
            assert await find(accounts) == (Outcome.BYPASS, "7")
            slots.execute_command("ACL", "SETUSER", "default", "+set")
            assert await settled(accounts) == "7"
    finally:
        slots.execute_command("ACL", "SETUSER", "default", "+set")


async def test_value_that_moves_to_another_row_is_never_that_of_the_former_row(
    accounts: EntityCache, slots: redis_client.Redis, admin: asyncpg.Connection
) -> None:
    await accounts.insert(account(1, email="ann@example.com"))
    await accounts.insert(account(2, email="bo@example.com"))
    assert (await settled(accounts), await settled(accounts, "bo@example.com")) == ("1", "2")
    await accounts.merge("1", RowInput.from_mapping({"email": "cy@example.com"}), None)
    assert await find(accounts) == (Outcome.MISS, None)
    await accounts.merge("2", RowInput.from_mapping({"email": "ann@example.com"}), None)
    assert await find(accounts) != (Outcome.HIT, "1")
    assert await settled(accounts) == "2"
    # Nobody tells this service of the exchange but the slot of a row.
    await admin.execute(
        "UPDATE account SET email = NULL; UPDATE account SET email = 'ann@example.com' WHERE id = 1"
    )
    slots.delete("sa:account:2")
    assert (await find(accounts))[1] == "1"
    await accounts.delete("1", None)
    assert (await find(accounts))[1] is None
    assert await settled(accounts) is None


async def test_slot_that_is_no_lookup_is_replaced(accounts: EntityCache, slots: redis_client.Redis) -> None:
    created = await accounts.insert(account(1, email="ann@example.com"))
    assert created.row is not None
    head = b"V%019d" % (created.version + 10**6) + created.row.fingerprint
    for content in (b"x", head + b"2", head + b"\xff", head + b"not a number", head.replace(b"V", b"L", 1)):
        slots.set(ANN, content)
        assert await settled(accounts) == "1"


async def test_null_is_no_value(accounts: EntityCache, slots: redis_client.Redis) -> None:
    await accounts.insert(account(1, tenant=1))
    await accounts.insert(account(2, tenant=1))
    assert slots.keys("sa:account@*") == []
    for columns, value in (
        (["tenant"], ("1",)),
        (["tenant", "slug"], ("x", "y")),
        (["tenant", "slug"], ("1",)),
        (["slug"], ("y",)),
        (["email"], ("\0",)),
    ):
        with pytest.raises(InvalidValueError):
            await accounts.find(columns, value)


async def test_unknown_values_empty_every_absent_and_nothing_else(
    accounts: EntityCache, slots: redis_client.Redis, redis_sa: Redis
) -> None:
    await accounts.insert(account(1, email="ann@example.com"))
    assert await settled(accounts) == "1"
    assert await settled(accounts, "bo@example.com") is None
    change = Change("account", "2", 10**16, Operation.UPSERT, None, "sa", datetime.now(UTC))
    opened = await Slots.open(redis_sa.url, 5, "sa:")
    settler = Settler("sa", {"account": accounts.entity}, opened, None)
    assert await settler.apply([change])
    assert slots.keys("sa:account@*") == [ANN.encode()]
    assert await settled(accounts, "bo@example.com") is None
    assert await settler.forget([change])
    assert slots.keys("sa:account@*") == []
    await opened.close()


@pytest.mark.parametrize("change", ["upsert", "too large", "unknown", "truncate", "begin"])
async def test_every_change_of_another_service_empties_absent(
    accounts: EntityCache, slots: redis_client.Redis, redis_sa: Redis, change: str
) -> None:
    assert await settled(accounts) is None
    row = b'{"id": 7, "email": "ann@example.com", "tenant": null, "slug": null, "note": null}'
    value = b"V%019d01234567" % 10**16 + row
    known = b'{"email":"ann@example.com","tenant,slug":null}'
    changes = {
        "upsert": Change("account", "7", 10**16, Operation.UPSERT, value, "", datetime.now(UTC)),
        "too large": Change("account", "7", 10**16, Operation.UPSERT, None, "", datetime.now(UTC), known),
        "unknown": Change("account", "7", 10**16, Operation.UPSERT, None, "", datetime.now(UTC)),
        "truncate": Change("account", None, 10**16, Operation.TRUNCATE, None, "", datetime.now(UTC)),
    }
    with blocking_client(redis_sa.url, 5) as client:
        applier = Applier(client, "sa", {"account": accounts.entity})
        if change == "begin":
            applier.begin(["account"])
        else:
            assert applier.apply([changes[change]]) == []
    assert slots.get(ANN) is None


async def test_value_of_every_type_has_one_text_in_slots_and_in_payloads(
    admin: asyncpg.Connection, open_service: OpenService, tmp_path: Path
) -> None:
    await admin.execute("CREATE TYPE mood AS ENUM ('so/so', 'ok')")
    declarations = ""
    # A value before Christ has only its canonical spelling.
    texts = {
        key_type: [
            text.replace(" 00:00Z BC", "T00:00:00Z BC").replace("26-01-01 00:00Z", "26-01-01T00:00:00Z")
            for text in values
        ]
        for key_type, values in ORDERS.items()
    }
    for number, key_type in enumerate(ORDERS):
        await admin.execute(
            f"CREATE TABLE t{number} (id bigint PRIMARY KEY, value {key_type} UNIQUE, other {key_type},"
            "one integer DEFAULT 1, UNIQUE (other, one));"
        )
        plain = key_type.partition(" COLLATE")[0]
        await admin.execute(
            f"INSERT INTO t{number} SELECT u.n, u.v::{plain}, u.v::{plain}"
            " FROM unnest($1::text []) WITH ORDINALITY AS u (v, n)",
            texts[key_type],
        )
        declarations += DECLARATION.replace("account", f"t{number}").replace(
            '["email", ["tenant", "slug"]]', '["value", ["other", "one"]]'
        )
    async with installed(declarations, admin, open_service, tmp_path) as service:
        for cache, values in zip(service.caches.values(), texts.values(), strict=True):
            for key, text in enumerate(values, 1):
                for columns, value in ((["value"], (text,)), (["other", "one"], (text, "1"))):
                    # Only a text that agrees with the payload is ever a hit.
                    while (read := await cache.find(columns, value)).outcome is not Outcome.HIT:
                        pass
                    assert read.row is not None
                    assert read.row.key == str(key)


async def test_library_finds_rows_by_the_values_of_columns(
    admin: asyncpg.Connection, accounts: EntityCache, postgres: Postgres, redis_sa: Redis
) -> None:
    await admin.execute("INSERT INTO account VALUES (1, 'ann@example.com', 7, 'x')")
    dsn = postgres.dsn_of(str(await admin.fetchval("SELECT current_database()")))
    entities = {"account": accounts.entity}
    # A pool whose sessions have the settings of the user.
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool,
        AsyncCaches("sa", redis=redis_sa.url, database=pool, entities=entities) as caches,
    ):
        for _ in range(3):
            row = await caches["account"].get_by(slug="x", tenant=7)
            assert row is not None
            assert row["email"] == "ann@example.com"
        assert await caches["account"].get_by(email="bo@example.com") is None
        async with pool.acquire() as connection, caches.following(connection):
            await connection.execute("INSERT INTO account VALUES (2, 'bo@example.com')")
        found = await caches["account"].get_by(email="bo@example.com", as_=dict)
        assert found == {"id": 2, "email": "bo@example.com", "tenant": None, "slug": None, "note": None}
        with pytest.raises(InvalidValueError, match="no unique lookup by emial"):
            await caches["account"].get_by(emial=Decimal(1))


def test_code_that_blocks_finds_rows_by_the_values_of_columns(
    sample: str, redis_sa: Redis, tmp_path: Path
) -> None:
    file = tmp_path / "entities.toml"
    file.write_text(DECLARATION)
    entities = load_entities(file)

    async def prepare() -> None:
        admin = await asyncpg.connect(sample)
        await admin.execute(TABLE)
        await admin.execute("INSERT INTO account VALUES (1, 'ann@example.com', 7, 'x')")
        await install(admin, entities, Silent())
        await admin.close()

    asyncio.run(prepare())
    with Caches("sa", redis=redis_sa.url, database=sample, entities=entities) as caches:
        for _ in range(3):
            row = caches["account"].get_by(tenant=7, slug="x")
            assert row is not None
            assert row["email"] == "ann@example.com"
        assert caches["account"].get_by(email="bo@example.com", as_=dict) is None


async def test_unique_index_is_required_and_its_loss_is_noticed(
    admin: asyncpg.Connection, accounts: EntityCache
) -> None:
    await accounts.insert(account(1, email="ann@example.com"))
    with pytest.raises(DuplicateRowError):
        await accounts.insert(account(2, email="ann@example.com"))
    await admin.execute("ALTER TABLE account DROP CONSTRAINT account_email_key")
    await accounts.look(0)
    assert accounts.problem is not None
    assert "no valid unique index on (email)" in accounts.problem
    assert (await find(accounts))[0] is Outcome.BYPASS
    await admin.execute("CREATE UNIQUE INDEX found_again ON account (email) INCLUDE (note)")
    await accounts.look(0)
    assert not accounts.problem
    assert await settled(accounts) == "1"


INDEXES = {
    "partial": ("CREATE UNIQUE INDEX ON account (email) WHERE id > 0", "no valid unique index on (email)"),
    "expression": ("CREATE UNIQUE INDEX ON account (lower(email))", "no valid unique index on (email)"),
    "more columns": ("CREATE UNIQUE INDEX ON account (email, tenant)", "no valid unique index on (email)"),
    "float": (
        "ALTER TABLE account ALTER COLUMN email TYPE float8 USING 0; CREATE UNIQUE INDEX ON account (email)",
        "has the type double precision, so that equal values can have different texts",
    ),
    "char of any length": (
        "ALTER TABLE account ALTER COLUMN email TYPE bpchar; CREATE UNIQUE INDEX ON account (email)",
        "has the type bpchar, so that equal values can have different texts",
    ),
    "missing": ("ALTER TABLE account DROP COLUMN email", "it has no column 'email'"),
}


async def test_lookup_without_a_fitting_index_is_refused(admin: asyncpg.Connection, tmp_path: Path) -> None:
    file = tmp_path / "entities.toml"
    file.write_text(DECLARATION)
    for statements, problem in INDEXES.values():
        await admin.execute(f"DROP TABLE IF EXISTS account; {TABLE}")
        await admin.execute("ALTER TABLE account DROP CONSTRAINT account_email_key")
        await admin.execute(statements)
        problems, _ = await check(admin, load_entities(file))
        assert len(problems) == 1
        assert problem in problems[0]


async def test_view_of_the_background_work_follows_the_declared_lookups(
    admin: asyncpg.Connection, tmp_path: Path
) -> None:
    await admin.execute(TABLE)
    file = tmp_path / "entities.toml"
    for unique, count in (('["email"]', 1), ('[["slug", "tenant"], "email"]', 3), ("[]", 0)):
        file.write_text(DECLARATION.replace('["email", ["tenant", "slug"]]', unique))
        await install(admin, load_entities(file), Silent())
        columns = await admin.fetchval(
            "SELECT count(*) FROM pg_attribute"
            " WHERE attrelid = 'cachesync.account'::regclass AND attname LIKE 'unique%'"
        )
        assert columns == count
        assert await admin.fetchval(
            "SELECT has_table_privilege('cachesync_worker', 'cachesync.account', 'SELECT')"
        )
    file.write_text(DECLARATION)
    rows = await ComparedRows.open(admin, load_entities(file)["account"])
    with pytest.raises(NotInstalledError, match="the unique lookups of entity 'account' are not installed"):
        await rows.lookups()
