"""Entities: the tables whose rows are cached, as declared in the entities file (TOML)."""

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
"""Prefix of the name of every topic."""

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
"""The effect of a change on a cached value: replace it, or empty the slot."""

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=63)]


class Entity(BaseModel):
    """The declaration of one cached table.

    Attributes:
        name: names the Kafka topic `cachesync.{name}` and the slots `{service}:{name}:{key}`.
        table: the table, as `name` or `schema.name`, without SQL quotes.
        key: the primary key column.
        columns: the columns that are cached and served, in this order; None for all columns.
        ttl: how long a value stays cached.
        absent_ttl: how long *absent* (no such row) stays cached.
        on_change: `refresh` replaces a cached value with the changed row; `invalidate` empties the slot.
        path: the URL path at which the services serve the entity, such as `/students`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The length limit leaves room for the suffixes of the database objects that are named after the entity.
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    table: Annotated[str, StringConstraints(pattern=r"^[^.\x00]{1,63}(\.[^.\x00]{1,63})?$")]
    key: Identifier
    columns: tuple[Identifier, ...] | None = None
    ttl: Duration
    absent_ttl: Duration
    on_change: OnChange = "refresh"
    path: Annotated[str, StringConstraints(pattern=r"^(/[a-z0-9][a-z0-9._-]*)+$")]

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.columns is None:
            return self
        if len(set(self.columns)) != len(self.columns):
            message = "columns lists a column twice"
            raise ValueError(message)
        if self.key not in self.columns:
            message = f"columns must include the key column {self.key!r}"
            raise ValueError(message)
        return self

    @property
    def schema_and_table(self) -> tuple[str, str]:
        """The table as (schema, name); the schema defaults to `public`."""
        schema, _, table = self.table.rpartition(".")
        return schema or "public", table

    @property
    def topic(self) -> str:
        """The Kafka topic of the entity's events."""
        return TOPIC_PREFIX + self.name


class _Declarations(BaseModel):
    entities: dict[str, Entity]

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        for attribute, label in (("schema_and_table", "table"), ("path", "path")):
            seen: dict[object, str] = {}
            for entity in self.entities.values():
                value = getattr(entity, attribute)
                if value in seen:
                    message = f"{seen[value]!r} and {entity.name!r} have the same {label}"
                    raise ValueError(message)
                seen[value] = entity.name
        return self


def load_entities(path: Path) -> dict[str, Entity]:
    """Load the declared entities.

    Args:
        path: the entities file.

    Returns:
        The entities by name, in the order of the file.

    Raises:
        DeclarationError: the file cannot be read, is not valid TOML, or contains an invalid declaration.
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
            message = f"{path}: {name!r} is outside a section; each entity is a [section]"
            raise DeclarationError(message)
        if "name" in section:
            message = f"{path}: {name}.name: remove it; the section name is the name of the entity"
            raise DeclarationError(message)
    if not document:
        message = f"{path} declares no entities; each entity is a [section]"
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
