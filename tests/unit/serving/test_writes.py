"""The services' responses to writes, on the stand-in for the library."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from falcon.testing import ASGIConductor

from cachesync.errors import (
    CaptureLostError,
    ConstraintViolatedError,
    DatabaseUnavailableError,
    DuplicateRowError,
    InvalidValueError,
    ReferenceViolatedError,
)
from cachesync.service.row_input import RowInput
from serving.problems import KINDS
from tests.unit.serving.stand_in import STUDENT, MemoryCache, MemoryService, app_on, column, served

if TYPE_CHECKING:
    from falcon.testing import Result

JSON = {"Content-Type": "application/json"}
ADA = b'{"id": 1, "name": "Ada", "age": 36}'


def handed_on(row: RowInput) -> tuple[bytes, tuple[str, ...]]:
    return row.text.encode(), row.columns


async def write(
    client: ASGIConductor, method: str, path: str, body: bytes | str, headers: dict[str, str] = JSON
) -> Result:
    return await client.simulate_request(method, path, body=body, headers=headers)


def problem(answer: Result) -> tuple[int, str, list[str]]:
    """Return status, kind and fields of a problem, after checking the members that all problems have."""
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json
    kind = document["type"].removeprefix("/problems/")
    assert document["status"] == answer.status_code
    assert document["title"] in {known.title for known in KINDS if known.name == kind}
    fields = [error["field"] for error in document.get("errors", [])]
    assert not fields or document["detail"].startswith(f"{fields[0]}: ")
    assert all(error["message"] for error in document.get("errors", []))
    return answer.status_code, kind, fields


async def test_post_creates_a_row_and_returns_its_location(client: ASGIConductor) -> None:
    answer = await write(client, "POST", "/students", ADA)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/students/1"
    assert answer.headers["etag"] == '"42"'
    assert answer.content == ADA
    assert "x-cache" not in answer.headers


async def test_location_encodes_the_key(client: ASGIConductor) -> None:
    answer = await write(client, "POST", "/words", '{"word": "ä/b?"}'.encode())
    assert answer.headers["location"] == "/words/%C3%A4%2Fb%3F"
    assert (await client.simulate_get(answer.headers["location"])).json["word"] == "ä/b?"


async def test_post_can_omit_columns_with_a_default_and_nullable_columns(
    client: ASGIConductor, service: MemoryService
) -> None:
    assert (await write(client, "POST", "/things", b"{}")).status_code == 201
    assert service.thing.given == [RowInput("{}", {})]


async def test_put_creates_a_missing_row_and_replaces_an_existing_one(client: ASGIConductor) -> None:
    created = await write(client, "PUT", "/students/1", b'{"name": "Ada"}')
    assert (created.status_code, created.headers["location"]) == (201, "/students/1")
    replaced = await write(client, "PUT", "/students/1", b'{"name": "Grace"}')
    assert (replaced.status_code, replaced.json["name"]) == (200, "Grace")
    assert "location" not in replaced.headers
    assert replaced.headers["etag"] == '"43"'


async def test_patch_merges_into_the_row(client: ASGIConductor) -> None:
    await write(client, "POST", "/students", ADA)
    for kind in ("application/merge-patch+json", "application/json"):
        answer = await write(client, "PATCH", "/students/1", b'{"age": null}', {"Content-Type": kind})
        assert (answer.status_code, answer.json) == (200, {"id": 1, "name": "Ada", "age": None})


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("POST", "/students", "Location"),
        ("PUT", "/students/1", "Location"),
        ("PUT", "/students/2", "Content-Location"),
        ("PATCH", "/students/2", "Content-Location"),
    ],
)
async def test_response_names_the_key_that_the_database_gave_the_row(
    client: ASGIConductor, service: MemoryService, method: str, path: str, header: str
) -> None:
    await write(client, "PUT", "/students/2", b'{"name":"Bo","age":1}')
    service.student.stored_key = "7001"
    body = ADA if method == "POST" else b'{"name":"Ada","age":36}'
    answer = await write(client, method, path, body)
    assert answer.headers[header] == "/students/7001"
    assert ("Location" in answer.headers) == (header == "Location")


async def test_delete_removes_the_row(client: ASGIConductor) -> None:
    await write(client, "POST", "/students", ADA)
    answer = await client.simulate_delete("/students/1")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.simulate_get("/students/1")).status_code == 404


async def test_x_cache_is_bypass_if_the_cache_could_not_be_updated(
    client: ASGIConductor, service: MemoryService
) -> None:
    service.student.cached = False
    for method, path in (("POST", "/students"), ("PUT", "/students/1"), ("PATCH", "/students/1")):
        assert (await write(client, method, path, ADA)).headers["x-cache"] == "BYPASS"
    assert (await client.simulate_delete("/students/1")).headers["x-cache"] == "BYPASS"


async def test_put_does_not_create_a_row_if_the_database_generates_keys() -> None:
    service = MemoryService()
    key, *others = STUDENT
    service.student = MemoryCache("student", (replace(key, generated=True), *others))
    body = b'{"name": "Ada"}'
    async with ASGIConductor(served(app_on(service))) as client:
        assert problem(await write(client, "PUT", "/students/1", body)) == (404, "row-not-found", [])
        creating = JSON | {"If-None-Match": "*"}
        answer = await write(client, "PUT", "/students/1", body, creating)
        assert problem(answer) == (400, "invalid-header", ["If-None-Match"])
        await service.student.insert(RowInput.from_json(ADA))
        assert (await write(client, "PUT", "/students/1", body)).status_code == 200
        assert handed_on(service.student.given[-1]) == (body, ("name",))
        answer = await write(client, "PUT", "/students/1", ADA)
        assert problem(answer) == (422, "read-only-field", ["id"])


# Rows as the library gets them


@pytest.mark.parametrize(
    "body",
    [
        b' { "id" : 1 , "name":"\\u00e4\xc3\xa4" } ',
        b'{"name":"x","id":1,"age":null}',
        b'{"id": 1, "name": "x", "age": -0}',
    ],
)
async def test_body_is_passed_on_byte_by_byte(
    client: ASGIConductor, service: MemoryService, body: bytes
) -> None:
    assert (await write(client, "POST", "/students", body)).status_code == 201
    assert [handed_on(row) for row in service.student.given] == [(body, tuple(json.loads(body)))]


@pytest.mark.parametrize("score", ["1.10", "0.1e1", "12.300000000000000000000000001", "-0.0"])
async def test_numbers_keep_their_digits(client: ASGIConductor, service: MemoryService, score: str) -> None:
    body = f'{{"word": "x", "score": {score}}}'.encode()
    assert (await write(client, "POST", "/words", body)).status_code == 201
    assert handed_on(service.word.given[0])[0] == body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"word":"a\\"b"}'),
        (b' {\n"score": 1.0}', b' {"word":"a\\"b",\n"score": 1.0}'),
        (b'{"word": "a\\u0022b"}', b'{"word": "a\\u0022b"}'),
    ],
)
async def test_put_adds_the_key_from_the_path(
    client: ASGIConductor, service: MemoryService, body: bytes, expected: bytes
) -> None:
    assert (await write(client, "PUT", "/words/a%22b", body)).status_code == 201
    assert handed_on(service.word.given[0]) == (expected, tuple(json.loads(expected)))


@pytest.mark.parametrize(
    ("age", "digits"), [("36.0", "36"), ("3.6e1", "36"), ("3600e-2", "36"), ("-0.0", "0"), ("36", "36")]
)
async def test_integers_are_written_as_postgresql_parses_them(
    client: ASGIConductor, service: MemoryService, age: str, digits: str
) -> None:
    body = f'{{"name": "{{\\"age\\": 1.0}}", "age" : {age} ,"id":1.0}}'.encode()
    assert (await write(client, "POST", "/students", body)).status_code == 201
    assert handed_on(service.student.given[0])[0] == (
        f'{{"name": "{{\\"age\\": 1.0}}", "age" : {digits} ,"id":1}}'.encode()
    )


# Preconditions


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("match", ['"42"', "*", '"7", "42"', 'W/"1","42"'])
async def test_write_succeeds_if_the_version_matches(client: ASGIConductor, method: str, match: str) -> None:
    await write(client, "POST", "/students", ADA)
    answer = await write(client, method, "/students/1", ADA, JSON | {"If-Match": match})
    assert answer.status_code in {200, 204}


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("match", ['"41"', 'W/"42"', '"042"', '"x"', '""', f'"{2**63}"', f'"{"9" * 40}"'])
async def test_write_is_rejected_if_the_version_does_not_match(
    client: ASGIConductor, method: str, match: str
) -> None:
    await write(client, "POST", "/students", ADA)
    answer = await write(client, method, "/students/1", ADA, JSON | {"If-Match": match})
    assert problem(answer) == (412, "precondition-failed", [])


async def test_if_match_on_a_missing_row_fails_for_put_and_is_not_found_otherwise(
    client: ASGIConductor,
) -> None:
    for match in ("*", '"42"', 'W/"42"'):
        headers = JSON | {"If-Match": match}
        assert (await write(client, "PUT", "/students/1", ADA, headers)).status_code == 412
        assert (await write(client, "PATCH", "/students/1", ADA, headers)).status_code == 404
        assert (await write(client, "DELETE", "/students/1", b"", headers)).status_code == 404


async def test_put_with_if_none_match_star_only_creates(client: ASGIConductor) -> None:
    headers = JSON | {"If-None-Match": "*"}
    assert (await write(client, "PUT", "/students/1", ADA, headers)).status_code == 201
    answer = await write(client, "PUT", "/students/1", ADA, headers)
    assert problem(answer) == (412, "precondition-failed", [])


async def test_duplicate_in_another_unique_column_is_not_a_failed_precondition(
    client: ASGIConductor, service: MemoryService
) -> None:
    service.student.fails = DuplicateRowError(("name",), "Key (name)=(Ada) already exists.")
    answer = await write(client, "PUT", "/students/1", ADA, JSON | {"If-None-Match": "*"})
    assert problem(answer) == (409, "duplicate-row", ["name"])


@pytest.mark.parametrize(
    ("method", "headers", "field"),
    [
        ("PUT", {"If-Match": "42"}, "If-Match"),
        ("PATCH", {"If-Match": '"42'}, "If-Match"),
        ("DELETE", {"If-Match": ""}, "If-Match"),
        ("PUT", {"If-None-Match": '"42"'}, "If-None-Match"),
        ("PUT", {"If-None-Match": "*", "If-Match": "*"}, "If-None-Match"),
        ("PATCH", {"If-None-Match": "*"}, "If-None-Match"),
        ("DELETE", {"If-None-Match": "*"}, "If-None-Match"),
    ],
)
async def test_unsupported_or_malformed_precondition_is_rejected(
    client: ASGIConductor, method: str, headers: dict[str, str], field: str
) -> None:
    answer = await write(client, method, "/students/1", ADA, JSON | headers)
    assert problem(answer) == (400, "invalid-header", [field])


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
async def test_post_rejects_preconditions(client: ASGIConductor, header: str) -> None:
    answer = await write(client, "POST", "/students", ADA, JSON | {header: "*"})
    assert problem(answer) == (400, "invalid-header", [header])


# Bodies that are not a valid row

DEEP = b'{"word": "x", "details": ' + b"[" * 100 + b"]" * 100 + b"}"
BOTTOMLESS = b'{"word": "x", "details": ' + b"[" * 400
NAN = b'{"word": "x", "details": NaN}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "malformed-json", [])),
        (b"{", (400, "malformed-json", [])),
        (b'{"word": "x"} x', (400, "malformed-json", [])),
        (b"{'word': 'x'}", (400, "malformed-json", [])),
        (b'{"word": "x",}', (400, "malformed-json", [])),
        (b'\xef\xbb\xbf{"word": "x"}', (400, "malformed-json", [])),
        (b'{"word": "a\nb"}', (400, "malformed-json", [])),
        (NAN, (400, "malformed-json", [])),
        (b'{"word": "x", "score": 01}', (400, "malformed-json", [])),
        (b'{"word": "\xff"}', (400, "invalid-encoding", [])),
        ('{"word": "x"}'.encode("utf-16"), (400, "invalid-encoding", [])),
        (b'{"word": "x", "word": "y"}', (400, "duplicate-member", ["word"])),
        (b'{"word": "x", "details": [{"a": 1, "a": 1}]}', (400, "duplicate-member", ["a"])),
        (DEEP, (400, "too-deep", [])),
        (BOTTOMLESS, (400, "malformed-json", [])),
        (b"[]", (422, "not-an-object", [])),
        (b"null", (422, "not-an-object", [])),
        (b'"x"', (422, "not-an-object", [])),
        (b"{}", (422, "missing-field", ["word"])),
        (b'{"word": "x", "colour": 1}', (422, "unknown-field", ["colour"])),
        (b'{"word": "x", "letters": 1}', (422, "read-only-field", ["letters"])),
        (b'{"word": 1}', (422, "wrong-type", ["word"])),
        (b'{"word": null}', (422, "wrong-type", ["word"])),
        (b'{"word": true, "score": []}', (422, "wrong-type", ["word", "score"])),
        (b'{"word": "12345678901"}', (422, "too-long", ["word"])),
        (b'{"word": "a\\u0000"}', (422, "invalid-text", ["word"])),
        (b'{"word": "\\ud800"}', (422, "invalid-text", ["word"])),
        (b'{"word": "x", "\\ud800": 1}', (422, "invalid-text", ["\\ud800"])),
        (b'{"word": "x", "details": {"a": ["\\u0000"]}}', (422, "invalid-text", ["details"])),
        (b'{"word": "x", "details": {"\\udfff": 1}}', (422, "invalid-text", ["details"])),
        (b'{"word": "x", "details": 1e131072}', (422, "out-of-range", ["details"])),
        (b'{"word": "x", "details": [1e-16384]}', (422, "out-of-range", ["details"])),
        (b'{"word": "x", "details": 1e99999999999999999999}', (422, "out-of-range", ["details"])),
        (b'{"word": "x", "score": 1e400}', (422, "out-of-range", ["score"])),
        (b'{"word": "x", "score": 1000}', (422, "out-of-range", ["score"])),
        (b'{"word": "x", "score": "ten"}', (422, "invalid-value", ["score"])),
        (b'{"word": "x", "mood": "furious"}', (422, "invalid-value", ["mood"])),
    ],
)
async def test_body_that_is_not_a_valid_row_is_rejected(
    client: ASGIConductor, service: MemoryService, body: bytes, expected: tuple[int, str, list[str]]
) -> None:
    assert problem(await write(client, "POST", "/words", body)) == expected
    assert not service.word.given


async def test_endlessly_nested_body_is_rejected(client: ASGIConductor) -> None:
    status, kind, _ = problem(await write(client, "POST", "/words", b"[" * 999))
    assert (status, kind) in {(400, "too-deep"), (400, "malformed-json")}


@pytest.mark.parametrize(
    ("age", "kind"),
    [
        ("2147483648", "out-of-range"),
        ("-2147483649", "out-of-range"),
        ("9" * 400, "out-of-range"),
        ("1e400", "out-of-range"),
        ("36.5", "wrong-type"),
        ("1e-5", "wrong-type"),
        ('"36"', "wrong-type"),
        ("true", "wrong-type"),
    ],
)
async def test_value_that_does_not_fit_an_integer_column_is_rejected(
    client: ASGIConductor, age: str, kind: str
) -> None:
    body = f'{{"id": 1, "name": "Ada", "age": {age}}}'.encode()
    assert problem(await write(client, "POST", "/students", body)) == (422, kind, ["age"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/words", '{{"word": "a", "details": [{0}, {0}]}}'),
        ("/words", '{{"word": "a", "details": {{"rate": -{0}, "other": {1}}}}}'),
        ("/words", '{{"word": "a", "spans": ["[{0},{0}]"]}}'),
        ("/words", '{{"word": "a", "spans": ["[{1},{1}]", "{1}"]}}'),
        ("/words", '{{"word": "a", "span": "[{0},)"}}'),
        ("/words", '{{"word": "a", "path": "$ ? (@ > {0} || @ < {1})"}}'),
    ],
)
async def test_numbers_count_with_the_digits_that_postgresql_writes(
    service: MemoryService, path: str, body: str
) -> None:
    service.word.columns = (
        *service.word.columns,
        column("spans", "_numrange", "A", nullable=True),
        column("span", "numrange", "R", nullable=True),
        column("path", "jsonpath", "U", nullable=True),
    )
    async with ASGIConductor(served(app_on(service))) as client:
        small = await write(client, "POST", path, body.format("1e90", "1e-90"))
        assert small.status_code == 201
        large = await write(client, "POST", path, body.format("1e1000", "1e-1000"))
        assert problem(large) == (413, "body-too-large", [])


async def test_body_is_not_rejected_by_a_description_that_may_be_outdated(
    service: MemoryService, client: ASGIConductor
) -> None:
    service.word.problem = "column 'word' no longer exists; run `cachesync install`"
    answer = await write(client, "POST", "/words", b'{"word": "x", "colour": 1}')
    assert problem(answer) == (503, "capture-lost", [])


@pytest.mark.parametrize("exponent", ["1_000", "0000001000", "+0_1_000"])
async def test_exponents_count_in_every_spelling(service: MemoryService, exponent: str) -> None:
    service.word.columns = (*service.word.columns, column("span", "numrange", "R", nullable=True))
    body = f'{{"word": "a", "span": "[0,1e{exponent}]"}}'
    async with ASGIConductor(served(app_on(service))) as client:
        assert problem(await write(client, "POST", "/words", body)) == (413, "body-too-large", [])


@pytest.mark.parametrize("number", ["0x{}", "[0,0X{})", "-0o{}", "{{1,0b_{}}}", "0x{}, 0x{}, 0x{}"])
async def test_integers_of_other_bases_count_with_the_time_they_take(
    service: MemoryService, number: str
) -> None:
    service.word.columns = (*service.word.columns, column("spans", "_numrange", "A", nullable=True))
    async with ASGIConductor(served(app_on(service, body_limit=50_000))) as client:
        for digits, status in ((1_000, 201), (9_000, 413)):
            body = json.dumps({"word": str(digits), "spans": [number.format(*["1" * digits] * 3)]})
            assert (await write(client, "POST", "/words", body)).status_code == status


async def test_texts_do_not_count_as_numbers(client: ASGIConductor) -> None:
    answer = await write(client, "POST", "/words", b'{"word": "1e99999", "details": ["1e99999"]}')
    assert answer.status_code == 201


@pytest.mark.parametrize("digits", [4300, 4301, 131_072, 131_073])
@pytest.mark.parametrize(
    ("target", "body", "field"),
    [
        ("POST /students", '{{"id": {}, "name": "x"}}', "id"),
        ("POST /students", '{{"id": 2, "name": "x", "age": -{}}}', "age"),
        ("POST /students", '{{"id": 2, "name": {}}}', "name"),
        ("PUT /students/1", '{{"id": {}, "name": "x"}}', "id"),
        ("PATCH /students/1", '{{"id": {}}}', "id"),
        ("POST /words", '{{"word": {}}}', "word"),
        ("POST /words", '{{"word": "a", "score": {}}}', "score"),
        ("POST /words", '{{"word": "a", "score": -{}}}', "score"),
        ("POST /words", '{{"word": "a", "details": [{0}, {{"b": {0}}}], "mood": {0}}}', "mood"),
        ("POST /things", '{{"id": {}}}', "id"),
    ],
)
async def test_integer_of_any_length_gets_a_response(
    service: MemoryService, target: str, body: str, field: str, digits: int
) -> None:
    method, path = target.split(" ")
    async with ASGIConductor(served(app_on(service, body_limit=10**6))) as client:
        await write(client, "PUT", "/students/1", ADA)
        answer = await write(client, method, path, body.format("9" * digits))
    if "details" in body and digits > 131_072:
        field = "details"
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, field)


async def test_invalid_fields_are_named_up_to_a_limit(client: ASGIConductor) -> None:
    members = ", ".join(f'"f{number}": 1' for number in range(30))
    answer = await write(client, "POST", "/words", f'{{"word": 1, {members}}}'.encode())
    assert len(answer.json["errors"]) == 20


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("key", ["2", "1.5", '"1"', "null"])
async def test_key_in_the_body_must_match_the_path(client: ASGIConductor, method: str, key: str) -> None:
    await write(client, "POST", "/students", ADA)
    answer = await write(client, method, "/students/1", f'{{"id": {key}, "name": "Ada"}}'.encode())
    kind = "key-mismatch" if key == "2" else "wrong-type"
    assert problem(answer) == (422, kind, ["id"])


async def test_uuid_key_can_be_written_in_any_form(client: ASGIConductor) -> None:
    key = "6f1c2a34-90ab-4cde-8f01-23456789abcd"
    body = json.dumps({"id": key.upper()}).encode()
    assert (await write(client, "PUT", f"/things/{{{key}}}", body)).status_code == 201
    answer = await write(client, "PUT", f"/things/{key}", b'{"id": "one"}')
    assert problem(answer) == (422, "invalid-value", ["id"])


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/jsonx", "application/json; charset=latin-1", "json"]
)
async def test_unsupported_media_type_is_rejected(client: ASGIConductor, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for method, path in (("POST", "/students"), ("PUT", "/students/1"), ("PATCH", "/students/1")):
        answer = await write(client, method, path, ADA, headers)
        assert problem(answer) == (415, "unsupported-media-type", ["Content-Type"])
        assert "application/json" in answer.headers["accept-patch" if method == "PATCH" else "accept"]


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "application/json ;"]
)
async def test_media_type_can_be_written_in_any_form(client: ASGIConductor, kind: str) -> None:
    assert (await write(client, "POST", "/students", ADA, {"Content-Type": kind})).status_code == 201


async def test_put_rejects_a_merge_patch(client: ASGIConductor) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}
    assert (await write(client, "PUT", "/students/1", ADA, headers)).status_code == 415


async def test_body_over_the_limit_is_rejected(client: ASGIConductor) -> None:
    body = b'{"id": 1, "name": "' + b"x" * 981 + b'"}'
    assert len(body) == 1002
    assert problem(await write(client, "POST", "/students", body)) == (413, "body-too-large", [])
    assert (await write(client, "POST", "/students", body.replace(b"xx", b"", 1))).status_code == 201


async def test_body_over_the_limit_is_rejected_without_a_content_length(
    client: ASGIConductor,
) -> None:
    headers = JSON | {"Content-Length": ""}
    answer = await write(client, "POST", "/students", b" " * 1001, headers)
    assert problem(answer) == (413, "body-too-large", [])


# Errors of the library


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DuplicateRowError(("name", "age"), "exists"), (409, "duplicate-row", ["name", "age"])),
        (DuplicateRowError((), "exists"), (409, "duplicate-row", [])),
        (ConstraintViolatedError("age", ("age",), "violates"), (422, "constraint-violated", ["age"])),
        (ConstraintViolatedError(None, (), "rejected by a trigger"), (422, "constraint-violated", [])),
        (InvalidValueError("name", "is not a string"), (422, "invalid-value", ["name"])),
        (InvalidValueError(None, "is not a string"), (422, "invalid-value", [])),
        (DatabaseUnavailableError("no response"), (503, "database-unavailable", [])),
        (CaptureLostError("no triggers"), (503, "capture-lost", [])),
    ],
)
async def test_each_error_of_the_database_has_its_own_problem(
    client: ASGIConductor, service: MemoryService, error: Exception, expected: tuple[int, str, list[str]]
) -> None:
    service.student.fails = error
    assert problem(await write(client, "POST", "/students", ADA)) == expected
    assert problem(await write(client, "PUT", "/students/1", ADA)) == expected
    assert problem(await write(client, "PATCH", "/students/1", ADA)) == expected


async def test_delete_of_a_referenced_row_is_a_conflict(
    client: ASGIConductor, service: MemoryService
) -> None:
    service.student.fails = ReferenceViolatedError("fk", (), "is still referenced")
    answer = await client.simulate_delete("/students/1")
    assert problem(answer) == (409, "reference-violated", [])


async def test_missing_row_is_not_found(client: ASGIConductor) -> None:
    for method in ("PATCH", "DELETE"):
        answer = await write(client, method, "/students/1", ADA)
        assert problem(answer) == (404, "row-not-found", [])


async def test_unexpected_error_does_not_reveal_its_message(
    client: ASGIConductor, service: MemoryService
) -> None:
    service.student.fails = RuntimeError("secret")
    answer = await write(client, "POST", "/students", ADA, JSON | {"X-Request-ID": "r1"})
    assert problem(answer) == (500, "internal-error", [])
    assert "secret" not in answer.text
    assert "r1" in answer.json["detail"]


async def test_long_values_are_shortened_in_messages(client: ASGIConductor) -> None:
    body = json.dumps({"id": 1, "name": ["x" * 900]}).encode()
    answer = await write(client, "POST", "/students", body)
    assert len(answer.json["detail"]) <= 301
