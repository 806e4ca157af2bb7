"""Reads by unique values over HTTP, on the stand-in for the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cachesync.errors import DatabaseUnavailableError
from cachesync.service.row_input import RowInput
from tests.unit.serving.test_writes import problem

if TYPE_CHECKING:
    from falcon.testing import ASGIConductor

    from tests.unit.serving.stand_in import MemoryService


@pytest.fixture(autouse=True)
async def _rows(service: MemoryService) -> None:
    for number, name in enumerate(("Ann", "a/b", "\u00e4", "")):
        await service.student.insert(RowInput.from_mapping({"id": number, "name": name, "age": 20}))
    await service.line.insert(RowInput.from_mapping({"product": "by", "line": 1, "amount": 7}))


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/students/by/name/Ann", 0),
        ("/students/by/name/a%2Fb", 1),
        ("/students/by/name/%C3%A4", 2),
        ("/students/by/name/", 3),
        ("/students/by/name,age/Ann/20", 0),
        ("/students/by/name%2Cage/a%2Fb/20", 1),
    ],
)
async def test_row_is_found_by_a_unique_value(
    client: ASGIConductor, service: MemoryService, path: str, number: int
) -> None:
    found = await client.simulate_get(path)
    assert (found.json["id"], found.headers["x-cache"]) == (number, service.student.outcome)
    by_key = await client.simulate_get(f"/students/{number}")
    assert (found.content, found.headers["etag"]) == (by_key.content, by_key.headers["etag"])
    assert (await client.simulate_head(path)).headers["etag"] == found.headers["etag"]
    known = await client.simulate_get(path, headers={"If-None-Match": found.headers["etag"]})
    assert known.status_code == 304
    assert (await client.simulate_delete(path)).status_code == 405


@pytest.mark.parametrize(
    "path", ["/students/by/name/Bo", "/students/by/name,age/Ann/21", "/lines/by/amount/8"]
)
async def test_value_that_no_row_has_is_not_found(client: ASGIConductor, path: str) -> None:
    answer = await client.simulate_get(path)
    assert problem(answer) == (404, "row-not-found", [])
    assert answer.headers["x-cache"] == "HIT"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/students/by/age/20",
            "/students/by/name/Ann/20",
            "/students/by/name,age/Ann",
            "/words/by/score/1",
        ),
        *("/students/by/%FF/Ann", "/students/by/name"),
    ],
)
async def test_columns_without_a_lookup_are_an_unknown_path(client: ASGIConductor, path: str) -> None:
    answer = await client.simulate_get(path)
    assert (answer.status_code, answer.json["type"]) == (404, "/problems/not-found")


@pytest.mark.parametrize(
    ("path", "field"),
    [("/lines/by/amount/x", "amount"), ("/students/by/name/%FF", "name"), ("/students/by/name/%00", "name")],
)
async def test_invalid_value_is_named_by_its_column(client: ASGIConductor, path: str, field: str) -> None:
    assert problem(await client.simulate_get(path)) == (400, "invalid-key", [field])


async def test_keys_that_look_like_lookups_are_read(client: ASGIConductor, service: MemoryService) -> None:
    assert (await client.simulate_get("/lines/by/1")).json["amount"] == 7
    service.line.fails = DatabaseUnavailableError("it is down")
    assert (await client.simulate_get("/lines/by/amount/7")).status_code == 503
