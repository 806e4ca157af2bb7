"""Entities: the tables whose rows are cached, as declared in the entities file (TOML)."""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from functools import cached_property
from itertools import combinations, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from cachesync.errors import DeclarationError
from cachesync.lookup import columns_name
from cachesync.mistakes import did_you_mean, in_words, matching

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOPIC_PREFIX: Final = "cachesync."
"""Prefix of the name of every topic."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_LONGEST = timedelta(days=3650)


def _duration(value: object) -> timedelta:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        message = f"must be a duration such as '500ms', '30s', '10m', '1h' or '1d', not {value!r}"
        raise ValueError(message)
    duration = timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    if duration > _LONGEST:
        message = f"must be at most '{_LONGEST.days}d', not {value!r}"
        raise ValueError(message)
    return duration


Duration = Annotated[timedelta, BeforeValidator(_duration)]
OnChange = Literal["refresh", "invalidate"]
"""The effect of a change on a cached value: replace it, or empty the slot."""

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=63)]


def _listed(names: object) -> object:
    if isinstance(names, str):
        return [names]
    if not isinstance(names, list | tuple) or not names:
        message = "must be the name of a column, or a list of such names"
        raise ValueError(message)
    return names


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        message = "must not list a column twice"
        raise ValueError(message)
    return names


KeyColumns = Annotated[tuple[Identifier, ...], BeforeValidator(_listed), AfterValidator(_distinct)]
"""The columns of a key; a single one can be given as text."""


def _each_listed(lookups: object) -> object:
    if not isinstance(lookups, list | tuple):
        message = "must be a list; each item is the name of a column, or a list of such names"
        raise ValueError(message)  # noqa: TRY004 - pydantic expects it
    return lookups


def _distinct_lookups(lookups: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    if len(set(map(frozenset, lookups))) != len(lookups):
        message = "must not list the same columns twice"
        raise ValueError(message)
    return lookups


Lookups = Annotated[tuple[KeyColumns, ...], BeforeValidator(_each_listed), AfterValidator(_distinct_lookups)]
"""The columns of unique lookups."""
MAX_NAME: Final = 40
"""Maximum length of an entity's name, which leaves room for the suffixes of the objects named after it."""
_NAME: Final = matching(
    rf"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}",
    f"the name of an entity: a lowercase letter, then lowercase letters, digits or _, at most {MAX_NAME} in "
    "total",
)
_TABLE: Final = matching(
    r"[^.\x00]{1,63}(\.[^.\x00]{1,63})?",
    "the name of a table, as name or schema.name, without quotes",
)
check_service_name: Final = matching(
    r"[a-z][a-z0-9-]{0,39}",
    "the name of a service: a lowercase letter, then lowercase letters, digits or -, at most 40 in total",
)
"""Returns the name of a service; raises a ValueError if it is not valid."""
ServiceName = Annotated[str, AfterValidator(check_service_name)]
"""The name of a service, with which the names of its slots begin."""
_PATH: Final = matching(
    r"(/[a-z0-9][a-z0-9._-]*)+", "a path such as /students, of lowercase letters, digits, '.', '_' and '-'"
)
TYPE_PARAMETER: Final = "as_"
"""The parameter of `get_by` that is not the value of a column."""
LOOKUP_PATH: Final = "/by"
"""What follows the path of an entity in those of its unique lookups."""
SEGMENTS_BEFORE_VALUES: Final = 2
"""How many segments precede the values in such a path: this one, and the columns."""


class Entity(BaseModel):
    """The declaration of one cached table.

    Attributes:
        name: names the Kafka topic `cachesync.{name}` and the slots `{service}:{name}:{key}`.
        table: the table, as `name` or `schema.name`, without SQL quotes.
        key: the columns of the primary key, in its order.
        columns: the columns that are cached and served, in this order; None for all columns.
        unique: the columns by whose values a row can be found as by its key; each needs a unique index.
        ttl: how long a value stays cached.
        absent_ttl: how long *absent* (no such row) stays cached.
        on_change: `refresh` replaces a cached value with the changed row; `invalidate` empties the slot.
        row_security: `bypass` if the services serve every row of a table whose policies would hide some;
            without it, such a table is refused.
        path: the URL path at which the services serve the entity, such as `/students`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_NAME)]
    table: Annotated[str, AfterValidator(_TABLE)]
    key: KeyColumns
    columns: tuple[Identifier, ...] | None = None
    unique: Lookups = ()
    ttl: Duration
    absent_ttl: Duration
    on_change: OnChange = "refresh"
    row_security: Literal["bypass"] | None = None
    path: Annotated[str, AfterValidator(_PATH)]

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if columns is None:
            return None
        columns = _distinct(columns)
        for name in info.data.get("key", ()):
            if name not in columns:
                message = f"must include the key column {name!r}"
                raise ValueError(message)
        return columns

    @field_validator("unique")
    @classmethod
    def _check_unique(
        cls, unique: tuple[tuple[str, ...], ...], info: ValidationInfo
    ) -> tuple[tuple[str, ...], ...]:
        columns, key = info.data.get("columns"), info.data.get("key", ())
        for lookup in unique:
            if set(lookup) == set(key):
                message = "must not list the key, by which a row is found anyway"
                raise ValueError(message)
            for name in lookup:
                if name == TYPE_PARAMETER:
                    message = (
                        f"must not name the column {name!r}, because `get_by` has a parameter of this name"
                    )
                    raise ValueError(message)
                if columns is not None and name not in columns:
                    message = f"must not name the column {name!r}, which the declared columns do not include"
                    raise ValueError(message)
            # The paths of the services are {path}/by/{columns}/{value} and {path}/{key}.
            if len(key) == len(lookup) + SEGMENTS_BEFORE_VALUES:
                message = (
                    f"must not have a lookup by {len(lookup)} for a key of {len(key)} columns, because their "
                    "paths could not be told apart"
                )
                raise ValueError(message)
        return unique

    @cached_property
    def lookups(self) -> dict[str, tuple[str, ...]]:
        """The columns of each unique lookup, by their name in slots and messages."""
        return {columns_name(columns): columns for columns in self.unique}

    @property
    def schema_and_table(self) -> tuple[str, str]:
        """The table as (schema, name); the schema defaults to `public`."""
        schema, _, table = self.table.rpartition(".")
        return schema or "public", table

    @property
    def topic(self) -> str:
        """The Kafka topic of the entity's events."""
        return TOPIC_PREFIX + self.name


CANARY: Final = Entity(
    name="cachesync_canary",
    table="cachesync.canary",
    key=("id",),
    columns=("id",),
    ttl="1d",
    absent_ttl="1m",
    path="/cachesync_canary",
)
"""The hidden entity of the live check, which is installed, published and applied, but not served."""


def with_canary(entities: Mapping[str, Entity]) -> dict[str, Entity]:
    """Return the declared entities and the hidden one of the live check, by name.

    Raises:
        DeclarationError: another entity has the name of the hidden one.
    """
    if entities.get(CANARY.name, CANARY) != CANARY:
        message = f"entity {CANARY.name!r} has the name of the live check's own entity; rename it"
        raise DeclarationError(message)
    return {**entities, CANARY.name: CANARY}


def load_entities(path: str | Path) -> dict[str, Entity]:
    """Load the declared entities.

    Args:
        path: the entities file.

    Returns:
        The entities by name, in the order of the file.

    Raises:
        DeclarationError: the file cannot be read, is not valid TOML, or contains invalid declarations. The
            text has one line for each mistake.
    """
    entities, mistakes = read_entities(path)
    if mistakes:
        raise DeclarationError("\n".join(mistakes))
    return entities


def read_entities(path: str | Path) -> tuple[dict[str, Entity], list[str]]:
    """Read the declared entities and describe the mistakes in the others.

    Args:
        path: the entities file.

    Returns:
        The valid entities by name, in the order of the file; and one line for each mistake.

    Raises:
        DeclarationError: the file cannot be read, is not valid TOML, or declares nothing.
    """
    path = Path(path)
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"cannot read the entities file {path}: {error.strerror}"
        raise DeclarationError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{path} is not valid TOML: {error}"
        raise DeclarationError(message) from error
    if not document:
        message = f"{path} declares no entities; each entity is a [section]"
        raise DeclarationError(message)
    entities: dict[str, Entity] = {}
    mistakes: list[str] = []
    for name, section in document.items():
        problem = _section_problem(name, section)
        if problem is not None:
            mistakes.append(problem)
            continue
        if "name" in section:
            mistakes.append(f"{name}.name: remove it; the section name is the name of the entity")
        try:
            entities[name] = Entity.model_validate({**section, "name": name})
        except ValidationError as error:
            mistakes += _field_problems(name, section, error)
    mistakes += _shared_values(document)
    return entities, [f"{path}: {mistake}".replace("\n", "\\n") for mistake in mistakes]


def _section_problem(name: str, section: object) -> str | None:
    """Return why something in the file is not the section of an entity; None if it is one."""
    if isinstance(section, list):
        return f"[[{name}]] must be [{name}], a section of its own for each entity"
    if not isinstance(section, dict):
        return f"{name!r} is outside a section; each entity is a [section]"
    if name == CANARY.name:
        return f"[{name}] is the name of the live check's own entity; rename it"
    if section and all(isinstance(value, dict) for value in section.values()):
        inner = next(iter(section))
        return (
            f"[{name}.{inner}] has a dot in its name; name the entity [{inner}], and give the schema in its "
            f'table: table = "{name}.{inner}"'
        )
    return None


def _field_problems(name: str, section: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    """Describe each mistake in a section."""
    for one in error.errors(include_url=False):
        field = str(one["loc"][0])
        if field == "name":
            yield f"[{name}] {in_words(one['type'], one['msg'], {})}"
        elif one["type"] != "extra_forbidden":
            # A key that is given as text has no position.
            loc = one["loc"] if isinstance(section.get(field), list) else one["loc"][:1]
            place = ".".join(map(str, loc))
            yield f"{name}.{place} {in_words(one['type'], one['msg'], one.get('ctx', {}))}"
    fields = [field for field in Entity.model_fields if field != "name"]
    every = f"; the fields are {', '.join(fields)}"
    for field in section:
        if field not in Entity.model_fields:
            hint = did_you_mean(field, [other for other in fields if other not in section])
            yield f"{name}.{field} is unknown{hint or every}"


def _shared_values(document: Mapping[str, Any]) -> Iterator[str]:
    """Describe each table and each path that two sections declare, and paths within those of lookups."""
    sections = {name: section for name, section in document.items() if isinstance(section, dict)}
    for (one, first), (other, second) in combinations(sections.items(), 2):
        for field in ("table", "path"):
            values = [section.get(field) for section in (first, second)]
            if field == "table":
                values = [str(value).removeprefix("public.") if value else value for value in values]
            if values[0] is not None and values[0] == values[1]:
                yield f"{one!r} and {other!r} have the same {field}"
    for (one, first), (other, second) in permutations(sections.items(), 2):
        taken = f"{first.get('path')}{LOOKUP_PATH}"
        if first.get("unique") and f"{second.get('path')}/".startswith(f"{taken}/"):
            yield f"the path of {other!r} begins with {taken}, like those of the unique lookups of {one!r}"
