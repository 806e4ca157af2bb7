"""Cost of bulk statements on a registered table, compared with the same table unregistered.

The comparison includes a naive outbox, whose row triggers draw a version and log the change row by row. The
three tables take turns within each round, so that changes in the machine's speed affect all of them.

`python -m benchmarks.bulk_insert` starts its own PostgreSQL.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from typing import TYPE_CHECKING, Final

import asyncpg
import typer
from rich.console import Console
from rich.table import Table

from cachesync.entity import Entity
from cachesync.install.installer import install
from local.postgres import Postgres
from local.settings import REPOSITORY
from local.silent import Silent
from local.state import claim_any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_TABLES: Final = ("plain", "registered", "row_triggers")
_MAKE: Final = """
CREATE TABLE plain (id int PRIMARY KEY, name text NOT NULL, age int);
CREATE TABLE registered (LIKE plain INCLUDING ALL);
CREATE TABLE row_triggers (LIKE plain INCLUDING ALL, row_version bigint NOT NULL);

CREATE SEQUENCE outbox_version;
CREATE TABLE outbox (
    version bigint PRIMARY KEY,
    key text NOT NULL,
    operation text NOT NULL,
    payload text,
    source text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at timestamptz
);
CREATE INDEX ON outbox (version) WHERE published_at IS NULL;

CREATE FUNCTION draw() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.row_version := nextval('outbox_version');
    RETURN NEW;
END
$$;
CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO outbox VALUES (nextval('outbox_version'), OLD.id, 'delete', NULL, session_user);
    ELSE
        INSERT INTO outbox VALUES (
            NEW.row_version, NEW.id, 'upsert',
            (SELECT row_to_json(p)::text FROM (SELECT NEW.id, NEW.name, NEW.age) AS p), session_user
        );
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER draw BEFORE INSERT OR UPDATE ON row_triggers FOR EACH ROW EXECUTE FUNCTION draw();
CREATE TRIGGER log AFTER INSERT OR UPDATE OR DELETE ON row_triggers FOR EACH ROW EXECUTE FUNCTION log();
"""


def _statements(connection: asyncpg.Connection, rows: int) -> dict[str, Callable[[str], Awaitable[object]]]:
    """Return the statements to measure, in an order in which each prepares the rows for the next."""
    copied = "".join(f"{number}\tname {number}\t{number % 100}\n" for number in range(rows)).encode()
    return {
        "COPY": lambda table: connection.copy_to_table(
            table, source=io.BytesIO(copied), columns=("id", "name", "age")
        ),
        "DELETE": lambda table: connection.execute(f"DELETE FROM {table}"),
        "INSERT": lambda table: connection.execute(
            f"INSERT INTO {table} (id, name, age)"
            f" SELECT i, 'name ' || i, i % 100 FROM generate_series(1, {rows}) AS i"
        ),
        "UPDATE": lambda table: connection.execute(f"UPDATE {table} SET age = age + 1"),
        "UPDATE of keys": lambda table: connection.execute(f"UPDATE {table} SET id = -id"),
    }


async def _measure(dsn: str, rows: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the durations of each statement on each table, in seconds."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(_MAKE)
    declared = {"table": "registered", "key": "id", "ttl": "1h", "absent_ttl": "1s", "path": "/r"}
    entity = Entity.model_validate({"name": "registered", **declared})
    await install(connection, {entity.name: entity}, Silent())
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        await connection.execute(f"TRUNCATE {', '.join(_TABLES)}, outbox, cachesync.change_log")
        for name, statement in _statements(connection, rows).items():
            for table in _TABLES:
                began = time.perf_counter()
                await statement(table)
                seconds.setdefault(name, {}).setdefault(table, []).append(time.perf_counter() - began)
            await connection.execute("VACUUM")
    await connection.close()
    return seconds


def main(rows: int = 100_000, rounds: int = 7) -> None:
    """Measure bulk statements without triggers, with the product's triggers, and with row triggers."""
    table = Table("statement", "on", "median ms", "fastest ms", "slowest ms", "x plain", title=f"{rows} rows")
    with claim_any(REPOSITORY / ".local" / "benchmark") as folder, Postgres(folder) as server:
        server.drop_databases()
        seconds = asyncio.run(_measure(server.dsn, rows, rounds))
    for statement, of_table in seconds.items():
        plain = statistics.median(of_table["plain"])
        for name, taken in of_table.items():
            times = [statistics.median(taken), min(taken), max(taken)]
            ratio = statistics.median(taken) / plain
            table.add_row(statement, name, *(f"{1000 * value:.0f}" for value in times), f"{ratio:.1f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
