"""What customers have purchased: a service with FastAPI and SQLAlchemy that caches its rows."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator  # noqa: TC003 - FastAPI reads it
from contextlib import asynccontextmanager
from decimal import Decimal  # noqa: TC003 - pydantic reads it
from pathlib import Path as File
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cachesync import AsyncCaches

ENTITIES = File(__file__).with_name("entities.toml")

engine = create_async_engine(os.environ["DATABASE_URL"])
caches = AsyncCaches("shop", redis=os.environ["REDIS_URL"], database=engine, entities=ENTITIES)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with caches:
        yield
    await engine.dispose()


async def transaction() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session, caches.following(session):
        yield session


# The scope is what commits before the response is sent, not after it.
Transaction = Annotated[AsyncSession, Depends(transaction, scope="function")]
Key = Annotated[int, Path(ge=1, lt=2**63)]
app = FastAPI(lifespan=lifespan)


class Purchase(BaseModel):
    """A purchase that is about to be made."""

    customer_id: int
    amount: Decimal
    note: str = ""


class Note(BaseModel):
    """What can be changed later."""

    note: str


@app.get("/purchases")
async def list_purchases(after: int = 0) -> list[dict[str, Any]]:
    """Return the purchases after a key: their keys from the database, their rows from the cache."""
    async with engine.connect() as connection:
        query = text("SELECT id FROM purchase WHERE id > :after ORDER BY id LIMIT 100")
        keys = (await connection.execute(query, {"after": after})).scalars().all()
    rows = await caches["purchase"].get_many(keys)
    return [row for row in rows.values() if row is not None]


@app.get("/purchases/{key}")
async def read_purchase(key: Key) -> dict[str, Any]:
    """Return a purchase, with its customer."""
    row = await caches["purchase"].get(key)
    if row is None:
        raise HTTPException(404)
    return row | {"customer": await caches["customer"].get(row["customer_id"])}


@app.post("/purchases", status_code=201)
async def create_purchase(purchase: Purchase, session: Transaction) -> dict[str, Any]:
    """Change two tables in one transaction."""
    insert = (
        "INSERT INTO purchase (customer_id, amount, note) VALUES (:customer_id, :amount, :note) RETURNING id"
    )
    key = await session.scalar(text(insert), purchase.model_dump())
    update = "UPDATE customer SET spent = spent + :amount WHERE id = :customer_id"
    await session.execute(text(update), purchase.model_dump(exclude={"note"}))
    return {"id": key}


@app.patch("/purchases/{key}", status_code=204)
async def change_purchase(key: Key, change: Note, session: Transaction) -> None:
    """Change the note of a purchase."""
    update = text("UPDATE purchase SET note = :note WHERE id = :key RETURNING id")
    if await session.scalar(update, {"note": change.note, "key": key}) is None:
        raise HTTPException(404)


@app.delete("/purchases/{key}", status_code=204)
async def delete_purchase(key: Key, session: Transaction) -> None:
    """Delete a purchase."""
    if await session.scalar(text("DELETE FROM purchase WHERE id = :key RETURNING id"), {"key": key}) is None:
        raise HTTPException(404)
