"""An entity: one table whose rows are cached, as declared in the TOML file of entities."""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationError,
    model_validator,
)

from cachesync.errors import DeclarationError

if TYPE_CHECKING:
    from pathlib import Path

TOPIC_PREFIX: Final = "cachesync."
"""What every entity's topic begins with."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")


def _duration(value: object) -> timedelta:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        message = f"{value!r} is not a duration such as '500ms', '30s', '10m', '1h' or '1d'"
        raise ValueError(message)
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


Duration = Annotated[timedelta, BeforeValidator(_duration)]
OnChange = Literal["refresh", "invalidate"]
"""What a change does to a cached value: replace it, or empty the slot."""

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=63)]


class Entity(BaseModel):
    """What is cached of one table, and how.

    Attributes:
        name: names the Kafka topic `cachesync.{name}` and the slots `{service}:{name}:{key}`.
        table: the table, `name` or `schema.name`, as in SQL without quotes.
        key: its primary key column.
        columns: the columns that are cached and served, in this order; None: all of them.
        ttl: how long a value stays cached.
        absent_ttl: how long 'no such row' stays cached.
        on_change: `refresh` replaces a cached value by the changed row, `invalidate` empties it.
        path: where the services offer it, such as `/students`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The length bound leaves room for the suffixes of the database objects named after it.
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    table: Annotated[str, StringConstraints(pattern=r"^[^.\x00]{1,63}(\.[^.\x00]{1,63})?$")]
    key: Identifier
    columns: tuple[Identifier, ...] | None = None
    ttl: Duration
    absent_ttl: Duration
    on_change: OnChange = "refresh"
    path: Annotated[str, StringConstraints(pattern=r"^(/[a-z0-9][a-z0-9._-]*)+$")]

    @model_validator(mode="after")
    def _columns_are_distinct_and_hold_the_key(self) -> Self:
        if self.columns is None:
            return self
        if len(set(self.columns)) != len(self.columns):
            message = "columns names a column twice"
            raise ValueError(message)
        if self.key not in self.columns:
            message = f"columns must hold the key column {self.key!r}"
            raise ValueError(message)
        return self

    @property
    def schema_and_table(self) -> tuple[str, str]:
        """The table as (schema, name); the schema is `public` where none is given."""
        schema, _, table = self.table.rpartition(".")
        return schema or "public", table

    @property
    def topic(self) -> str:
        """The Kafka topic that carries its changes."""
        return TOPIC_PREFIX + self.name


class _Declarations(BaseModel):
    entities: dict[str, Entity]

    @model_validator(mode="after")
    def _tables_and_paths_are_distinct(self) -> Self:
        for attribute in ("schema_and_table", "path"):
            seen: dict[object, str] = {}
            for entity in self.entities.values():
                value = getattr(entity, attribute)
                if value in seen:
                    what = "path" if attribute == "path" else "table"
                    message = f"{seen[value]!r} and {entity.name!r} have the same {what}"
                    raise ValueError(message)
                seen[value] = entity.name
        return self


def load_entities(path: Path) -> dict[str, Entity]:
    """Read the declared entities, by name, in the order of the file.

    Raises:
        DeclarationError: the file cannot be read, is no TOML, or declares something impossible.
    """
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"cannot read the entities file {path}: {error.strerror}"
        raise DeclarationError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{path} is not valid TOML: {error}"
        raise DeclarationError(message) from error
    for name, section in document.items():
        if not isinstance(section, dict):
            message = f"{path}: {name!r} stands outside a section; each entity is a [section]"
            raise DeclarationError(message)
        if "name" in section:
            message = f"{path}: {name}.name: an entity is called as its section is"
            raise DeclarationError(message)
    if not document:
        message = f"{path} declares no entity; each is a [section]"
        raise DeclarationError(message)
    try:
        declared = _Declarations.model_validate(
            {"entities": {name: {"name": name, **section} for name, section in document.items()}}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        reason = first["msg"].removeprefix("Value error, ")
        message = f"{path}: {where}: {reason}" if where else f"{path}: {reason}"
        raise DeclarationError(message) from error
    return declared.entities
