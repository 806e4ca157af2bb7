"""The services' responses to reads, on the stand-in for the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cachesync.errors import DatabaseUnavailableError
from cachesync.service.cache import Outcome
from cachesync.service.row_input import RowInput

if TYPE_CHECKING:
    from falcon.testing import ASGIConductor

    from tests.unit.serving.stand_in import MemoryService


@pytest.fixture(autouse=True)
async def _rows(service: MemoryService) -> None:
    for key in (1, 2, 10):
        body = b'{"id": %d, "name": "Ada", "age": 36}' % key
        await service.student.insert(RowInput.from_json(body))
    await service.word.insert(RowInput.from_json(b'{"word": "a/b c"}'))


async def test_row_is_served_as_its_payload_with_its_version_as_etag(client: ASGIConductor) -> None:
    answer = await client.simulate_get("/students/1")
    assert answer.status_code == 200
    assert answer.content == b'{"id": 1, "name": "Ada", "age": 36}'
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["etag"] == '"42"'
    assert answer.headers["x-cache"] == "HIT"


@pytest.mark.parametrize("outcome", Outcome)
async def test_x_cache_reports_how_the_read_was_answered(
    client: ASGIConductor, service: MemoryService, outcome: Outcome
) -> None:
    service.student.outcome = outcome
    assert (await client.simulate_get("/students/1")).headers["x-cache"] == outcome.value
    missing = await client.simulate_get("/students/3")
    assert (missing.status_code, missing.headers["x-cache"]) == (404, outcome.value)


async def test_head_returns_the_headers_of_get_without_a_body(client: ASGIConductor) -> None:
    for path in ("/students/1", "/students?limit=1"):
        get = await client.simulate_get(path)
        head = await client.simulate_head(path)
        assert head.content == b""
        assert {**head.headers, "x-request-id": ""} == {**get.headers, "x-request-id": ""}


@pytest.mark.parametrize("known", ['"42"', 'W/"42"', '"1", W/"42"', "*", ' "1" ,, "42" '])
async def test_matching_if_none_match_returns_304(client: ASGIConductor, known: str) -> None:
    answer = await client.simulate_get("/students/1", headers={"If-None-Match": known})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == '"42"'
    assert answer.headers["x-cache"] == "HIT"


@pytest.mark.parametrize("known", ['"41"', '"042"', '"4", "2"', 'W/"43"'])
async def test_if_none_match_with_other_versions_returns_the_row(client: ASGIConductor, known: str) -> None:
    assert (await client.simulate_get("/students/1", headers={"If-None-Match": known})).status_code == 200


@pytest.mark.parametrize("known", ["42", '"42', 'w/"42"', '"4" "2"', ""])
async def test_malformed_if_none_match_is_rejected(client: ASGIConductor, known: str) -> None:
    answer = await client.simulate_get("/students/1", headers={"If-None-Match": known})
    assert (answer.status_code, answer.json["type"]) == (400, "/problems/invalid-header")
    assert answer.json["errors"][0]["field"] == "If-None-Match"
    assert "etag" not in answer.headers


@pytest.mark.parametrize(
    "key", ["x", "01", "+1", "1.0", "9223372036854775808", "%31%20", "", "%FF", "1%00", "%F0%9F%98%80"]
)
async def test_invalid_key_is_rejected_with_its_field(client: ASGIConductor, key: str) -> None:
    answer = await client.simulate_get(f"/students/{key}")
    assert (answer.status_code, answer.json["type"]) == (400, "/problems/invalid-key")
    assert [error["field"] for error in answer.json["errors"]] == ["id"]


@pytest.mark.parametrize("path", ["/words/a%2Fb%20c", "/words/a%2fb%20%63"])
async def test_encoded_slash_is_part_of_a_key(client: ASGIConductor, path: str) -> None:
    answer = await client.simulate_get(path)
    assert (answer.status_code, answer.json["word"]) == (200, "a/b c")


@pytest.mark.parametrize("path", ["/words/a/b%20c", "/", "/nothing", "/students/1/2"])
async def test_unknown_path_returns_a_problem(client: ASGIConductor, path: str) -> None:
    answer = await client.simulate_get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json["type"], answer.json["instance"]) == ("/problems/not-found", path)


@pytest.mark.parametrize("outcome", Outcome)
async def test_read_without_a_precondition_has_the_same_response(
    client: ASGIConductor, service: MemoryService, outcome: Outcome
) -> None:
    """It is answered without Falcon."""
    service.student.outcome = outcome
    same = {"X-Request-ID": "same"}
    short = await client.simulate_get("/students/1", headers=same, query_string="a=1")
    whole = await client.simulate_get("/students/1", headers={**same, "If-None-Match": '"7"'})
    assert (short.status_code, short.content) == (whole.status_code, whole.content) == (200, short.content)
    assert dict(short.headers) == dict(whole.headers)
    assert short.headers["x-cache"] == outcome


@pytest.mark.parametrize("method", ["POST", "TRACE", "CONNECT", "PROPFIND", "BREW", "WEBSOCKET"])
async def test_unsupported_method_returns_the_supported_ones(client: ASGIConductor, method: str) -> None:
    answer = await client.simulate_request(method, "/students/1")
    assert (answer.status_code, answer.json["type"]) == (405, "/problems/method-not-allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT, OPTIONS"


async def test_pages_are_in_key_order_and_link_to_the_next(client: ASGIConductor) -> None:
    first = await client.simulate_get("/students", query_string="limit=2")
    assert first.headers["x-cache"] == "BYPASS"
    assert [row["id"] for row in first.json["items"]] == [1, 2]
    assert first.json["next"] == "/students?after=2&limit=2"
    assert first.headers["link"] == '</students?after=2&limit=2>; rel="next"'
    last = await client.simulate_get(first.json["next"])
    assert ([row["id"] for row in last.json["items"]], last.json["next"]) == ([10], None)
    assert "link" not in last.headers


async def test_page_contains_the_payloads_unchanged(client: ASGIConductor) -> None:
    answer = await client.simulate_get("/students", query_string="after=2&limit=1")
    assert answer.content == b'{"items": [{"id": 10, "name": "Ada", "age": 36}], "next": null}'


async def test_next_link_encodes_the_key(client: ASGIConductor, service: MemoryService) -> None:
    await service.word.insert(RowInput.from_json('{"word": "ä&?"}'.encode()))
    answer = await client.simulate_get("/words", query_string="limit=1")
    assert answer.json["next"] == "/words?after=a%2Fb+c&limit=1"
    following = await client.simulate_get("/words", query_string=answer.json["next"].partition("?")[2])
    assert [row["word"] for row in following.json["items"]] == ["ä&?"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=1001", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=1.0", "limit"),
        ("limit=", "limit"),
        ("limit=%D9%A1", "limit"),
        ("after=", "after"),
        ("after=x", "after"),
        ("after=1%00", "after"),
        ("limit=1&limit=2", "limit"),
        ("after=1&after=1", "after"),
    ],
)
async def test_invalid_parameter_is_named(client: ASGIConductor, query: str, field: str) -> None:
    answer = await client.simulate_get("/students", query_string=query)
    assert (answer.status_code, answer.json["type"]) == (400, "/problems/invalid-parameter")
    assert [error["field"] for error in answer.json["errors"]] == [field]


@pytest.mark.parametrize("query", ["after=%FF", "x=%C3", "&" * 3 + "a=1&" * 101])
async def test_malformed_query_string_is_rejected(client: ASGIConductor, query: str) -> None:
    answer = await client.simulate_get("/students", query_string=query)
    assert (answer.status_code, answer.json["type"]) == (400, "/problems/invalid-parameter")


async def test_unavailable_database_returns_503_with_retry_after(
    client: ASGIConductor, service: MemoryService
) -> None:
    service.student.fails = DatabaseUnavailableError("the pool at db.internal is empty")
    for path in ("/students/1", "/students"):
        answer = await client.simulate_get(path)
        assert (answer.status_code, answer.json["type"]) == (503, "/problems/database-unavailable")
        assert answer.headers["retry-after"] == "1"
        assert "db.internal" not in answer.text


async def test_well_formed_request_id_is_kept(client: ASGIConductor) -> None:
    answer = await client.simulate_get("/students/1", headers={"X-Request-ID": "checkout-7f3a"})
    assert answer.headers["x-request-id"] == "checkout-7f3a"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'x"y', "é"])
async def test_malformed_request_id_is_replaced(client: ASGIConductor, given: str) -> None:
    first = await client.simulate_get("/students/1", headers={"X-Request-ID": given})
    second = await client.simulate_get("/students/1", headers={"X-Request-ID": given})
    assert len({given, first.headers["x-request-id"], second.headers["x-request-id"]}) == 3
