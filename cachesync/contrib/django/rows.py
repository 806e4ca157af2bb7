"""The rows of a model, read through the cache."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import connections, models
from django.utils import timezone

from cachesync.contrib.django.configured import caches, database_alias
from cachesync.errors import RowTypeError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from cachesync.entity import Entity
    from cachesync.service.caches import Key, KeyPart
    from cachesync.sync import Caches

M = TypeVar("M", bound=models.Model)

_NOT_FINITE: Final = ("NaN", "Infinity", "-Infinity")
# As PostgreSQL writes it with the setting `intervalstyle = iso_8601`.
_INTERVAL: Final = re.compile(
    r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?\d+(?:\.\d+)?)S)?)?"
)


class CachedRows:
    """The attribute of a model that reads its rows through the cache: `Customer.cached.get(7)`.

    Not a manager, since it has no queries.

    Args:
        entity: the entity; by default the one with the table of the model.
    """

    def __init__(self, entity: str | None = None) -> None:
        self._entity = entity

    def __get__(self, instance: object, model: type[M]) -> RowsOfModel[M]:
        if instance is not None:
            message = "the cached rows are an attribute of the model, not of its instances"
            raise AttributeError(message)
        return RowsOfModel(model, self._entity)


class RowsOfModel(Generic[M]):
    """The cached rows of a model, as instances.

    Fields whose columns the entity does not have are deferred: Django reads them when they are first used.

    Args:
        model: the model.
        entity: the entity; None for the one with the table of the model.

    Raises:
        SettingsError: no entity fits, or several do, or the order of its key is not the model's.
    """

    def __init__(self, model: type[M], entity: str | None) -> None:
        self._model = model
        name = entity or _entity_of(model)
        self._cache = caches()[name]
        _require_order(model, caches().entities[name])

    def get(self, pk: Key) -> M | None:
        """Return the instance with a primary key; None if there is no such row.

        Raises:
            InvalidValueError: the key is not valid for its column.
            DatabaseUnavailableError: the row is not cached, and the database did not respond.
            RowTypeError: a value is not valid for its field.
        """
        row = self._cache.get(pk)
        return None if row is None else self._instance(row)

    def get_many(self, pks: Iterable[Key]) -> dict[Key, M | None]:
        """Return instances by their primary keys, as they were given; None if there is no such row.

        Raises:
            InvalidValueError: a key is not valid for its column.
            DatabaseUnavailableError: a row is not cached, and the database did not respond.
            RowTypeError: a value is not valid for its field.
        """
        rows = self._cache.get_many(pks)
        return {pk: None if row is None else self._instance(row) for pk, row in rows.items()}

    def get_by(self, /, **values: KeyPart) -> M | None:
        """Return the instance that has a value in unique columns; None if no row has it.

        Args:
            **values: the value of each column of one of the entity's `unique` lookups, by its name.

        Raises:
            InvalidValueError: these are no columns of a lookup, or a value is not valid for its column.
            DatabaseUnavailableError: the row is not cached, and the database did not respond.
            RowTypeError: a value is not valid for its field.
        """
        row = self._cache.get_by(as_=None, **values)
        return None if row is None else self._instance(row)

    def _instance(self, row: dict[str, Any]) -> M:
        # The columns of concrete fields have names.
        fields: list[Any] = [
            field
            for field in self._model._meta.concrete_fields  # noqa: SLF001 - documented as public
            if field.column in row
        ]
        names = [field.attname for field in fields]
        values = [_value(field, row[field.column]) for field in fields]
        return self._model.from_db(database_alias(), names, values)


def _entity_of(model: type[models.Model]) -> str:
    # The names of tables can be quoted, and can have a schema.
    table = model._meta.db_table.replace('"', "")  # noqa: SLF001 - documented as public
    names = _names_by_table(caches()).get(table, [])
    if not names:
        message = f"no entity has the table {table!r} of the model {model.__name__}"
        raise SettingsError(message)
    if len(names) > 1:
        message = (
            f"several entities have a table {table!r}, which is that of the model {model.__name__}: "
            f"{', '.join(names)}; name one of them, such as CachedRows({names[0]!r})"
        )
        raise SettingsError(message)
    return names[0]


@cache
def _names_by_table(of: Caches) -> dict[str, list[str]]:
    """Return the names of the entities by their table, with its schema and without."""
    names: dict[str, list[str]] = {}
    for name, entity in of.entities.items():
        for table in (entity.schema_and_table[1], ".".join(entity.schema_and_table)):
            names.setdefault(table, []).append(name)
    return names


def _require_order(model: type[models.Model], entity: Entity) -> None:
    """Raise if the primary key is not the entity's key, or has another order: it would name other rows.

    A single column of several can be the model's primary key for want of a better one.
    """
    key: Any = model._meta.pk  # noqa: SLF001 - documented as public
    # A composite one, since Django 5.2, has several.
    columns = getattr(key, "columns", (key.column,))
    if columns != entity.key and (len(columns) > 1 or len(entity.key) == 1):
        message = (
            f"the primary key of the model {model.__name__} is ({', '.join(columns)}), but the key of the "
            f"entity {entity.name!r} is ({', '.join(entity.key)}); give the model this key, in this order"
        )
        raise SettingsError(message)


def _value(field: Any, value: Any) -> Any:  # noqa: PLR0911 - one for each kind of field
    """Return the value of a field whose column has a value of JSON."""
    if value is None:
        return None
    # A GeneratedField converts nothing itself.
    kind = getattr(field, "output_field", field)
    try:
        match kind:
            case models.BinaryField():
                return bytes.fromhex(value.removeprefix("\\x"))
            case models.DurationField():
                return _interval(value)
            case models.DecimalField() if value in _NOT_FINITE:
                return Decimal(value)
            case ArrayField():
                return [_value(kind.base_field, one) for one in value]
            case models.JSONField():
                return value if kind.decoder is None else json.loads(json.dumps(value), cls=kind.decoder)
            case _ if hasattr(kind, "from_db_value"):
                return kind.from_db_value(value, None, connections[database_alias()])
        value = kind.to_python(value)
    except (TypeError, ValueError, ValidationError) as error:
        message = f"the column {field.column!r} has no value of the field {field}: {error}"
        raise RowTypeError(message) from error
    if isinstance(kind, models.DateTimeField) and not settings.USE_TZ:
        return _naive(value)
    return value


def _interval(text: str) -> timedelta:
    """Return an interval as Django does, for which a month has 30 days and a year 365."""
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise ValueError(text)
    years, months, days, hours, minutes, seconds = (Decimal(part or 0) for part in found.groups())
    whole = int(365 * years + 30 * months + days)
    microseconds = int(1_000_000 * (3600 * hours + 60 * minutes + seconds))
    return timedelta(days=whole, microseconds=microseconds)


def _naive(value: datetime) -> datetime:
    return timezone.make_naive(value) if timezone.is_aware(value) else value
