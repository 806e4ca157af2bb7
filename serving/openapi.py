"""The OpenAPI 3.1 document of a service, derived from PostgreSQL's catalog."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from cachesync.entity import LOOKUP_PATH
from serving import problems
from serving.body import JSON, MERGE_PATCH
from serving.resources import DEFAULT_PAGE, lookup_fields, path_fields
from serving.schema import column_schema, insert_schema, patch_schema, replace_schema, row_schema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from falcon.asgi import Response

    from cachesync.postgres.catalog import Column
    from cachesync.postgres.key import Key
    from cachesync.service.cache import EntityCache
    from serving.request import Request
    from serving.settings import Settings

Part = dict[str, Any]

# Any request can fail with these.
_ALWAYS: Final = (400, 414, 431, 500, 501, 503, 505)

_TAG: Final = {"type": "string", "examples": ['"42"']}
_TAGS: Final = {**_TAG, "pattern": '^(\\*|(W/)?"[!#-~]*"(, ?(W/)?"[!#-~]*")*)$'}
_HEADERS: Final[Part] = {
    "X-Request-ID": {
        "description": "ID of the request in the log: the client's if it sent a valid ID, or a new one",
        "required": True,
        "schema": {"type": "string"},
    },
    "X-Cache": {
        "description": "How a read was answered; on a write, BYPASS if the cache could not be updated",
        "schema": {"enum": ["HIT", "MISS", "BYPASS"]},
    },
    "ETag": {
        "description": "The row version",
        "required": True,
        "schema": {**_TAG, "pattern": '^"[0-9]+"$'},
    },
    "Location": {"description": "Path of the created row", "required": True, "schema": {"type": "string"}},
    "Content-Location": {
        "description": "Path of the row if the database has changed its key",
        "schema": {"type": "string"},
    },
    "Link": {"description": 'The next page, rel="next", if there is one', "schema": {"type": "string"}},
    "Retry-After": {
        "description": "Seconds to wait before a retry",
        "required": True,
        "schema": {"type": "string"},
    },
}
_PARAMETERS: Final[Part] = {
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "description": "Write only if the row has one of these versions; `*`: only if it exists",
        "schema": _TAGS,
    },
    "If-None-Match": {
        "name": "If-None-Match",
        "in": "header",
        "description": "Respond with 304 if the row has one of these versions; `*`: any version",
        "schema": _TAGS,
    },
    "Create-Only": {
        "name": "If-None-Match",
        "in": "header",
        "description": "Create the row only if it does not exist",
        "schema": {"const": "*"},
    },
    "X-Request-ID": {
        "name": "X-Request-ID",
        "in": "header",
        "description": "ID for the request; valid if it consists of up to 128 letters, digits and ._:+/=-",
        "schema": {"type": "string", "examples": ["checkout-7f3a"]},
    },
}


class OpenApi:
    """`/openapi.json`: the OpenAPI document.

    Args:
        caches: the caches of the service's entities.
        settings: the settings of the service.
    """

    entity = "openapi"

    def __init__(self, caches: Iterable[EntityCache], settings: Settings) -> None:
        self._caches = list(caches)
        self._settings = settings
        self._render()

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Respond with the document, which is rendered again only after columns have changed."""
        if any(
            cache.columns is not columns for cache, columns in zip(self._caches, self._columns, strict=True)
        ):
            self._render()
        resp.data = self._document

    def _render(self) -> None:
        self._columns = [cache.columns for cache in self._caches]
        # Not orjson, because the bounds of numeric columns can be integers of more than 64 bits.
        self._document = json.dumps(document(self._caches, self._settings), ensure_ascii=False).encode()

    on_head = on_get


def document(caches: list[EntityCache], settings: Settings) -> Part:
    """Build the OpenAPI document of a service.

    Args:
        caches: the caches of the service's entities.
        settings: the settings of the service.
    """
    paths = dict(_own_paths())
    schemas: Part = {"problem": _problem_schema()}
    for cache in caches:
        name = cache.entity.name
        schemas[name] = row_schema(cache.columns)
        schemas[f"{name}.insert"] = insert_schema(cache)
        schemas[f"{name}.replace"] = replace_schema(cache)
        schemas[f"{name}.patch"] = patch_schema(cache)
        paths[cache.entity.path] = _rows(cache, settings)
        fields = "/".join(f"{{{field}}}" for field in path_fields(cache.key))
        paths[f"{cache.entity.path}/{fields}"] = _one_row(cache)
        for columns in cache.entity.unique:
            fields = "/".join(f"{{{field}}}" for field in lookup_fields(len(columns)))
            listed = quote(",".join(columns), safe=",")
            paths[f"{cache.entity.path}{LOOKUP_PATH}/{listed}/{fields}"] = _found(cache, columns)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"db-cache-sync: {settings.service}",
            "version": "1",
            "description": "Rows of the shared database, read through the cache of this service.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "headers": _HEADERS, "parameters": _PARAMETERS},
    }


def _rows(cache: EntityCache, settings: Settings) -> Part:
    name = cache.entity.name
    page = {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": _schema(name)},
            "next": {
                "type": ["string", "null"],
                "description": "Path of the next page; null on the last page",
            },
        },
        "required": ["items", "next"],
        "additionalProperties": False,
    }
    limit = {"type": "integer", "minimum": 1, "maximum": settings.page_limit}
    parameters = [
        {"name": "after", "in": "query", **_after(cache.key)},
        {
            "name": "limit",
            "in": "query",
            "description": "Maximum number of rows per page; a page of large rows ends earlier",
            "schema": {**limit, "default": min(DEFAULT_PAGE, settings.page_limit)},
        },
        _parameter("X-Request-ID"),
    ]
    answers = {
        "200": _answer("A page of rows in key order", page, _page_example(cache), "X-Cache", "Link"),
        **_problems(400, 503),
    }
    return {
        "get": {
            "operationId": f"list_{name}",
            "summary": f"List rows of {name} from the database",
            "tags": [name],
            "parameters": parameters,
            "responses": answers,
        },
        "head": {
            "operationId": f"head_list_{name}",
            "summary": "Get the headers of a page",
            "tags": [name],
            "parameters": parameters,
            "responses": _without_content(answers),
        },
        "post": {
            "operationId": f"insert_{name}",
            "summary": f"Insert a row of {name}",
            "tags": [name],
            "parameters": [_parameter("X-Request-ID")],
            "requestBody": _request_body({JSON: f"{name}.insert"}, _insert_example(cache)),
            "responses": {
                "201": _row_answer(cache, "The created row", "X-Cache", "Location"),
                **_problems(400, 408, 409, 413, 415, 422, 503),
            },
        },
    }


def _one_row(cache: EntityCache) -> Part:
    name = cache.entity.name
    found = {
        "200": _row_answer(cache, "The row", "X-Cache"),
        "304": {
            "description": "The client already has the current version of the row",
            "headers": _headers("ETag", "X-Cache"),
        },
        **_problems(400, 404, 503),
    }
    known = [_parameter("If-None-Match"), _parameter("X-Request-ID")]
    only_replaces = (404,) if cache.key.generated else ()
    guarded = [_parameter("If-Match"), _parameter("X-Request-ID")]
    merge = _request_body({MERGE_PATCH: f"{name}.patch", JSON: f"{name}.patch"}, _writable_example(cache))
    return {
        "parameters": [
            _path_parameter(field, column)
            for field, column in zip(path_fields(cache.key), cache.key.columns, strict=True)
        ],
        "get": {
            "operationId": f"read_{name}",
            "summary": f"Read a row of {name} through the cache",
            "tags": [name],
            "parameters": known,
            "responses": found,
        },
        "head": {
            "operationId": f"head_{name}",
            "summary": "Get the headers of a row",
            "tags": [name],
            "parameters": known,
            "responses": _without_content(found),
        },
        "put": {
            "operationId": f"replace_{name}",
            "summary": f"Replace or create a row of {name}",
            "tags": [name],
            "parameters": [_parameter("Create-Only"), *guarded],
            "requestBody": _request_body({JSON: f"{name}.replace"}, _writable_example(cache)),
            "responses": {
                "200": _row_answer(cache, "The replaced row", "X-Cache", "Content-Location"),
                "201": _row_answer(cache, "The created row", "X-Cache", "Location"),
                **_problems(400, *only_replaces, 408, 409, 412, 413, 415, 422, 503),
            },
        },
        "patch": {
            "operationId": f"merge_{name}",
            "summary": f"Apply a JSON merge patch (RFC 7396) to a row of {name}",
            "description": (
                "Objects in json, jsonb and composite columns are merged member by member; "
                "null removes a member, or sets that of a composite value to null. Arrays are replaced."
            ),
            "tags": [name],
            "parameters": guarded,
            "requestBody": merge,
            "responses": {
                "200": _row_answer(cache, "The patched row", "X-Cache", "Content-Location"),
                **_problems(400, 404, 408, 409, 412, 413, 415, 422, 503),
            },
        },
        "delete": {
            "operationId": f"delete_{name}",
            "summary": f"Delete a row of {name}",
            "tags": [name],
            "parameters": guarded,
            "responses": {
                "204": {"description": "The row was deleted", "headers": _headers("X-Cache")},
                **_problems(400, 404, 409, 412, 503),
            },
        },
    }


def _found(cache: EntityCache, columns: tuple[str, ...]) -> Part:
    name = cache.entity.name
    by_name = {column.name: column for column in cache.columns}
    answers = {
        "200": _row_answer(cache, "The row that has the value", "X-Cache"),
        "304": {
            "description": "The client already has the current version of the row",
            "headers": _headers("ETag", "X-Cache"),
        },
        **_problems(400, 404, 503),
    }
    known = [_parameter("If-None-Match"), _parameter("X-Request-ID")]
    by = re.sub(r"[^A-Za-z0-9_]", "_", "_and_".join(columns))
    return {
        "parameters": [
            _path_parameter(field, by_name[column])
            for field, column in zip(lookup_fields(len(columns)), columns, strict=True)
        ],
        "get": {
            "operationId": f"find_{name}_by_{by}",
            "summary": f"Find the row of {name} with a unique value through the cache",
            "tags": [name],
            "parameters": known,
            "responses": answers,
        },
        "head": {
            "operationId": f"head_{name}_by_{by}",
            "summary": "Get the headers of the row",
            "tags": [name],
            "parameters": known,
            "responses": _without_content(answers),
        },
    }


def _path_parameter(field: str, column: Column) -> Part:
    return {
        "name": field,
        "in": "path",
        "required": True,
        "description": f"The row's {column.name}",
        "schema": _key_schema(replace(column, nullable=False)),
    }


def _own_paths() -> Iterable[tuple[str, Part]]:
    parts = {"postgresql": True, "redis": True, "kafka": True}
    members = {part: {"type": "boolean"} for part in parts} | {
        "redis_reason": {
            "type": "string",
            "description": "If `redis` is false: why. Redis does not respond, rejects the login, or refuses "
            "commands that the cache needs",
        },
        "entities": {
            "type": "object",
            "description": "Why writes of an entity are refused, and what to run; omitted if none are",
            "additionalProperties": {"type": "string"},
        },
    }
    live = {"type": "object", "properties": {"status": {"const": "live"}}, "required": ["status"]}
    ready = {
        "type": "object",
        "properties": {"status": {"const": "ready"}, **members},
        "required": ["status", *parts],
    }
    not_ready = {"allOf": [_schema("problem"), {"type": "object", "properties": members}]}
    for path, summary, answers in (
        (
            "/health/live",
            "Check that the process responds",
            {"200": _answer("The process responds", live, {"status": "live"})},
        ),
        (
            "/health/ready",
            "Check that the database responds",
            {
                "200": _answer("The database responds", ready, {"status": "ready", **parts}),
                "503": {
                    "description": "The database does not respond",
                    "headers": _headers(),
                    "content": {problems.MEDIA_TYPE: {"schema": not_ready}},
                },
            },
        ),
        ("/openapi.json", "Get this document", {"200": _answer("This document", {"type": "object"}, None)}),
    ):
        name = path.strip("/").replace("/", "_").removesuffix(".json")
        responses = {**_problems(), **answers}
        shared = {"summary": summary, "tags": ["service"], "parameters": [_parameter("X-Request-ID")]}
        yield (
            path,
            {
                "get": {"operationId": name, **shared, "responses": responses},
                "head": {"operationId": f"head_{name}", **shared, "responses": _without_content(responses)},
            },
        )


def _schema(name: str) -> Part:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str) -> Part:
    return {"$ref": f"#/components/parameters/{name}"}


def _headers(*names: str) -> Part:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _answer(description: str, schema: Part, example: object, *headers: str) -> Part:
    media: Part = {"schema": schema}
    if example is not None:
        media["example"] = example
    return {"description": description, "headers": _headers(*headers), "content": {JSON: media}}


def _row_answer(cache: EntityCache, description: str, *headers: str) -> Part:
    return _answer(description, _schema(cache.entity.name), _example(cache.columns), "ETag", *headers)


def _without_content(answers: Part) -> Part:
    return {
        status: {name: part for name, part in answer.items() if name != "content"}
        for status, answer in answers.items()
    }


def _request_body(schemas: dict[str, str], example: Part) -> Part:
    return {
        "required": True,
        "content": {kind: {"schema": _schema(name), "example": example} for kind, name in schemas.items()},
    }


def _problems(*statuses: int) -> Part:
    """Return the responses with these statuses, each with the problems that it can contain."""
    answers: Part = {}
    for status in (*statuses, *_ALWAYS):
        kinds = [kind for kind in problems.KINDS if kind.status == status and kind is not problems.NOT_READY]
        headers = ["X-Cache"] if status in {404, 503} else []
        if status == problems.DATABASE_UNAVAILABLE.status:
            headers.append("Retry-After")
        answers[str(status)] = {
            "description": "; ".join(f"`{kind.name}`: {kind.title}" for kind in kinds),
            "headers": _headers(*headers),
            "content": {
                problems.MEDIA_TYPE: {
                    "schema": _schema("problem"),
                    "examples": {kind.name: {"value": _problem_example(kind)} for kind in kinds},
                }
            },
        }
    return answers


def _problem_example(kind: problems.Kind) -> Part:
    return {
        "type": f"/problems/{kind.name}",
        "title": kind.title,
        "status": kind.status,
        "detail": "what is wrong with this request",
        "instance": "/path/of/the/request",
    }


def _problem_schema() -> Part:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": "Problem details (RFC 9457)",
        "properties": {
            "type": {**text, "format": "uri-reference"},
            "title": text,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": text,
            "instance": {**text, "format": "uri-reference"},
            "errors": {
                "type": "array",
                "description": "The fields, parameters or headers at fault",
                "items": {
                    "type": "object",
                    "properties": {"field": text, "message": text},
                    "required": ["field", "message"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["type", "title", "status", "detail", "instance"],
    }


def _after(key: Key) -> Part:
    """Return the description and the schema of the key that precedes a page."""
    description = "Return the rows whose keys follow this one"
    if len(key.columns) == 1:
        return {"description": description, "schema": _key_schema(key.columns[0])}
    return {
        "description": f"{description}: {', '.join(key.names)}, separated by /; ~1 is a /, and ~0 is a ~",
        "schema": {"type": "string"},
    }


def _key_schema(column: Column) -> Part:
    return {name: value for name, value in column_schema(column).items() if name != "readOnly"}


def _page_example(cache: EntityCache) -> Part:
    return {"items": [_example(cache.columns)], "next": f"{cache.entity.path}?after=…&limit=1"}


def _writable_example(cache: EntityCache) -> Part:
    """Return a row for a PUT, which has its key in the path."""
    return _example(c for c in cache.columns if not c.generated and c.name not in cache.key.names)


def _insert_example(cache: EntityCache) -> Part:
    needed = [column for column in cache.key.columns if not (column.generated or column.has_default)]
    return _writable_example(cache) | _example(needed)


def _example(columns: Iterable[Column]) -> Part:
    return {column.name: _example_value(column) for column in columns}


def _example_value(column: Column) -> object:
    if column.labels is not None:
        return column.labels[0]
    if column.base_type in _EXAMPLES:
        return _EXAMPLES[column.base_type]
    return _EXAMPLES_BY_CATEGORY.get(column.category, "text"[: column.max_length])


_EXAMPLES: Final[Part] = {
    "bool": True,
    "date": "2026-02-03",
    "json": {},
    "jsonb": {},
    "numeric": 1,
    "time": "12:30:00",
    "timestamp": "2026-02-03T12:30:00",
    "timestamptz": "2026-02-03T12:30:00+00:00",
    "uuid": "6f1c2a34-90ab-4cde-8f01-23456789abcd",
    "inet": "192.0.2.1",
    "interval": "1 day",
}
_EXAMPLES_BY_CATEGORY: Final[Part] = {"N": 1, "A": [], "C": {}}
