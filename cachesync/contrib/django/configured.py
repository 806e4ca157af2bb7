"""The caches of the setting CACHESYNC."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections

from cachesync.errors import SettingsError
from cachesync.mistakes import did_you_mean
from cachesync.sync import Caches

_NEEDED: Final = ("SERVICE", "REDIS", "ENTITIES")
_KNOWN: Final = (*_NEEDED, "DATABASE")


@cache
def caches() -> Caches:
    """Return the caches of the setting CACHESYNC, which each process opens when it first uses them.

    CACHESYNC is a dict: `SERVICE`, `REDIS` and `ENTITIES` as for `cachesync.sync.Caches`, and `DATABASE`, the
    alias of the database, if it is not `default`.

    Raises:
        SettingsError: the setting is missing or invalid.
        DeclarationError: the entities file is invalid.
    """
    given = _given()
    for name in given:
        if name not in _KNOWN:
            message = f"CACHESYNC has no {name!r}{did_you_mean(str(name), _KNOWN)}"
            raise SettingsError(message)
    for name in _NEEDED:
        if name not in given:
            message = f"CACHESYNC lacks {name!r}"
            raise SettingsError(message)
    return Caches(
        given["SERVICE"],
        redis=given["REDIS"],
        database=connections[database_alias()],
        entities=given["ENTITIES"],
    )


def database_alias() -> str:
    """Return the alias of the database whose rows are cached."""
    alias: str = _given().get("DATABASE", DEFAULT_DB_ALIAS)
    return alias


def _given() -> dict[str, Any]:
    given = getattr(settings, "CACHESYNC", None)
    if not isinstance(given, dict):
        message = "the setting CACHESYNC is missing, a dict with SERVICE, REDIS and ENTITIES"
        raise SettingsError(message)
    return given
