"""Rows whose keys have several columns, over HTTP, on the stand-in for the library."""

from __future__ import annotations

from dataclasses import replace

import pytest
from falcon.testing import ASGIConductor

from cachesync.service.row_input import RowInput
from tests.unit.serving.stand_in import LINE, MemoryCache, MemoryService, app_on, served
from tests.unit.serving.test_writes import problem, write

KEYS = {
    "/lines/a/1": "a",
    "/lines/a%2Fb/2": "a/b",
    "/lines/~1/3": "~1",
    "/lines//4": "",
    "/lines/%C3%A4/5": "ä",
}


@pytest.fixture(autouse=True)
async def _rows(service: MemoryService) -> None:
    for path, product in KEYS.items():
        row = {"product": product, "line": int(path.rpartition("/")[2]), "amount": 7}
        await service.line.insert(RowInput.from_mapping(row))


@pytest.mark.parametrize("path", KEYS)
async def test_a_path_has_a_segment_for_each_column_of_the_key(client: ASGIConductor, path: str) -> None:
    answer = await client.simulate_get(path)
    assert (answer.status_code, answer.json["product"]) == (200, KEYS[path])
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await client.simulate_get(path, headers=known)).status_code == 304
    assert (await write(client, "PATCH", path, b'{"amount": 8}')).json["amount"] == 8
    assert (await write(client, "PUT", path, b'{"amount": 9}')).json["product"] == KEYS[path]
    assert (await client.simulate_delete(path)).status_code == 204
    assert problem(await client.simulate_get(path)) == (404, "row-not-found", [])


@pytest.mark.parametrize("path", ["/lines/a", "/lines/a/1/", "/lines/a/1/1", "/lines/a~11"])
async def test_a_path_with_another_number_of_segments_is_unknown(client: ASGIConductor, path: str) -> None:
    answer = await client.simulate_get(path)
    assert (answer.status_code, answer.json["type"]) == (404, "/problems/not-found")


@pytest.mark.parametrize(
    ("path", "field"), [("/lines/a/x", "line"), ("/lines/a%00/1", "product"), ("/lines/%FF/1", "product")]
)
async def test_an_invalid_segment_is_named_by_its_column(
    client: ASGIConductor, path: str, field: str
) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        assert problem(await write(client, method, path, b"{}")) == (400, "invalid-key", [field])


@pytest.mark.parametrize(
    ("body", "status", "location"),
    [
        ('{"product": "x/~y", "line": 1}', 201, "/lines/x%2F~y/1"),
        ('{"product": "", "line": -1}', 201, "/lines//-1"),
        ('{"product": "a", "line": 1.0}', 409, None),
    ],
)
async def test_location_has_a_segment_for_each_column(
    client: ASGIConductor, body: str, status: int, location: str | None
) -> None:
    answer = await write(client, "POST", "/lines", body)
    assert (answer.status_code, answer.headers.get("location")) == (status, location)
    if location is not None:
        assert (await client.simulate_get(location)).json == {**answer.json}


async def test_put_adds_the_columns_of_the_key_that_the_body_omits(
    client: ASGIConductor, service: MemoryService
) -> None:
    for body in ("{}", '{"line": 1e0}', '{"product": "n"}', '{"line": 1, "product": "n"}'):
        answer = await write(client, "PUT", "/lines/n/1", body)
        assert (answer.status_code, answer.json) == (
            201 if body == "{}" else 200,
            {"product": "n", "line": 1, "amount": None},
        )
        assert set(service.line.given[-1].columns) == {"product", "line"}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(
    ("body", "field"), [('{"line": 2}', "line"), ('{"line": 1, "product": "b"}', "product")]
)
async def test_each_column_of_the_key_in_the_body_must_match_the_path(
    client: ASGIConductor, method: str, body: str, field: str
) -> None:
    assert problem(await write(client, method, "/lines/a/1", body)) == (422, "key-mismatch", [field])


async def test_pages_are_in_the_order_of_the_columns(client: ASGIConductor, service: MemoryService) -> None:
    for line in (10, 9):
        await service.line.insert(RowInput.from_mapping({"product": "a/b", "line": line}))
    seen = []
    path: str | None = "/lines?limit=2"
    while path is not None:
        answer = await client.simulate_get(path)
        seen += [(row["product"], row["line"]) for row in answer.json["items"]]
        path = answer.json["next"]
    assert seen == [("", 4), ("a", 1), ("a/b", 2), ("a/b", 9), ("a/b", 10), ("~1", 3), ("ä", 5)]
    first = await client.simulate_get("/lines?limit=3")
    assert first.json["next"] == "/lines?after=a~1b%2F2&limit=3"
    assert problem(await client.simulate_get("/lines?after=a")) == (400, "invalid-parameter", ["after"])


async def test_put_creates_no_row_if_the_database_generates_a_part_of_the_key() -> None:
    service = MemoryService()
    product, line, amount = LINE
    service.line = MemoryCache("line", (product, replace(line, generated=True), amount), key=2)
    async with ASGIConductor(served(app_on(service))) as client:
        assert problem(await write(client, "PUT", "/lines/a/1", b"{}")) == (404, "row-not-found", [])


async def test_columns_whose_names_are_no_words_are_numbered_in_the_description() -> None:
    service = MemoryService()
    product, line, amount = LINE
    service.line = MemoryCache("line", (replace(product, name="product name"), line, amount), key=2)
    async with ASGIConductor(served(app_on(service))) as client:
        document = (await client.simulate_get("/openapi.json")).json
        assert "/lines/{key_1}/{key_2}" in document["paths"]
        assert (await client.simulate_get("/lines/a/1")).status_code == 404


async def test_the_path_of_another_entity_is_no_key() -> None:
    """The longest path of an entity wins, with and without Falcon."""
    service = MemoryService()
    inner = service.word.entity.model_copy(update={"path": "/lines/a"})
    service.word.entity = inner
    await service.word.insert(RowInput.from_mapping({"word": "1"}))
    await service.line.insert(RowInput.from_mapping({"product": "a", "line": 1}))
    async with ASGIConductor(served(app_on(service))) as client:
        for headers in ({}, {"If-None-Match": '"7"'}):
            assert "word" in (await client.simulate_get("/lines/a/1", headers=headers)).json
