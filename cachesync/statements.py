"""The SQL of this package, read from its `.sql` files."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@cache
def _text(name: str) -> str:
    return (resources.files("cachesync") / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def statement(name: str, **fragments: str) -> str:
    """The text of `sql/{name}.sql`, each `{{placeholder}}` replaced by its SQL fragment.

    Values never come this way, they are parameters; a fragment is an identifier or a list of them,
    quoted with `identifier` or `literal`.

    Raises:
        KeyError: a placeholder has no fragment.
    """
    return _PLACEHOLDER.sub(lambda match: fragments[match[1]], _text(name))


def identifier(*parts: str) -> str:
    """A quoted SQL identifier; several parts are joined by dots."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def literal(text: str) -> str:
    """A quoted SQL string literal; `standard_conforming_strings` is on since PostgreSQL 9.1."""
    return "'" + text.replace("'", "''") + "'"
