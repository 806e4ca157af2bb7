"""Tables are changed under load, as docs/schema-changes.md describes."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NoReturn

from cachesync.entity import load_entities
from cachesync.install.installer import install
from cachesync.service.cache import Outcome
from cachesync.service.row_input import RowInput
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import asyncpg

    from cachesync.service.cache import EntityCache
    from cachesync.service.service import Service

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]

TABLE = """
CREATE TABLE word (id int PRIMARY KEY, turn int NOT NULL, note text, size int);
INSERT INTO word VALUES (1, 0, 'n', 5)
"""
COPY = """
ALTER TABLE word ADD COLUMN copy text;
CREATE FUNCTION copy_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.copy := NEW.turn;
    RETURN NEW;
END $$;
CREATE TRIGGER copy_turn BEFORE INSERT OR UPDATE ON word FOR EACH ROW EXECUTE FUNCTION copy_turn();
UPDATE word SET copy = turn
"""
RETYPE = """
ALTER TABLE word ALTER COLUMN size TYPE text;
ALTER TABLE word RENAME note TO remark;
DROP TRIGGER copy_turn ON word;
ALTER TABLE word DROP COLUMN copy
"""
SOON = 200


def names(cache: EntityCache) -> tuple[str, ...]:
    """The columns that a process serves."""
    return tuple(column.name for column in cache.columns)


class Users:
    """Clients of several processes of one service, which read and change the row all the time."""

    def __init__(self) -> None:
        self.caches: list[EntityCache] = []
        self._turns: dict[int, int] = {}
        #: The highest version that was acknowledged after it reached the slot.
        self._acknowledged = 0

    async def write(self) -> NoReturn:
        turn = 0
        while True:
            for cache in self.caches:
                turn += 1
                patch = RowInput.from_json(json.dumps({"turn": turn}).encode())
                written = await cache.merge("1", patch, None)
                self._turns[written.version] = turn
                if written.cached:
                    self._acknowledged = written.version
                await asyncio.sleep(0.01)

    async def read(self) -> NoReturn:
        while True:
            for cache in self.caches:
                acknowledged, before = self._acknowledged, names(cache)
                row = (await cache.read("1")).row
                assert row is not None
                assert row.version >= acknowledged
                # What was written a moment ago is not acknowledged yet.
                read = json.loads(row.payload)
                assert self._turns.get(row.version) in {None, read["turn"]}
                assert tuple(read) in {before, names(cache)}
                assert read.get("copy") in {None, str(read["turn"])}
                await asyncio.sleep(0)


async def test_table_changes_while_old_and_new_processes_read_and_write_it(
    admin: asyncpg.Connection, open_service: OpenService, tmp_path: Path
) -> None:
    def declare(*columns: str) -> Path:
        file = tmp_path / f"{'-'.join(columns)}.toml"
        file.write_text(
            f'[word]\ntable = "word"\nkey = "id"\ncolumns = {json.dumps(columns)}\n'
            'ttl = "1h"\nabsent_ttl = "1h"\npath = "/words"\n'
        )
        return file

    async def installed(*columns: str) -> Path:
        file = declare(*columns)
        await install(admin, load_entities(file), Silent())
        return file

    async def until_served(*columns: str) -> None:
        async with asyncio.timeout(20):
            while any(names(cache) != columns for cache in users.caches):
                await asyncio.sleep(0.02)

    await admin.execute(TABLE)
    users = Users()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:

        async def start(file: Path) -> None:
            opened = open_service("sa", cachesync_entities=file, schema_check_ms=SOON)
            users.caches.append((await stack.enter_async_context(opened)).caches["word"])

        await start(await installed("id", "turn", "note", "size"))
        tasks = [group.create_task(users.read()), group.create_task(users.write())]
        # A change that is taken back.
        await admin.execute("BEGIN; ALTER TABLE word DROP COLUMN size CASCADE; ROLLBACK")
        # A column that follows another one is added; old processes serve it, too.
        await admin.execute(COPY)
        await start(await installed("id", "turn", "note", "size", "copy"))
        await until_served("id", "turn", "note", "size", "copy")
        # Columns are retyped, renamed and dropped while they are not declared.
        await installed("id", "turn")
        await admin.execute(RETYPE)
        await start(await installed("id", "turn", "remark", "size"))
        await until_served("id", "turn", "remark", "size")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        # The write that was canceled can still be committed.
        for cache in users.caches:
            async with asyncio.timeout(20):
                while True:
                    read = await cache.read("1")
                    payload = await admin.fetchval("SELECT payload FROM cachesync.word")
                    if read.row and (read.outcome, read.row.payload) == (Outcome.HIT, payload.encode()):
                        break
                    await asyncio.sleep(0.02)
            assert json.loads(payload).items() >= {"remark": "n", "size": "5"}.items()
