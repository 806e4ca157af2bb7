"""SQL statements, read from the `.sql` files of the packages."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from cachesync.errors import InstallError

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_TAG = re.compile(r"\$[a-z]+\$")


@cache
def _text(name: str) -> str:
    package, _, file = name.partition("/")
    return (resources.files("cachesync") / package / "sql" / f"{file}.sql").read_text(encoding="utf-8")


def statement(name: str, **fragments: str) -> str:
    """Return the SQL of a file, with each `{{placeholder}}` replaced by its fragment.

    Values are passed as parameters, never as fragments. Names and literals in a fragment must be quoted with
    `identifier` or `literal`.

    Args:
        name: `{package}/{file}` for `cachesync/{package}/sql/{file}.sql`.
        fragments: SQL text by placeholder.

    Raises:
        KeyError: a placeholder has no fragment.
        InstallError: a name in a fragment would end the body of a function.
    """
    text = _text(name)

    def fragment(match: re.Match[str]) -> str:
        before = _TAG.findall(text, 0, match.start())
        for tag in set(before):
            if before.count(tag) % 2 and tag in fragments[match[1]]:
                message = f"the name of a table, a column or a type contains {tag}; rename it"
                raise InstallError(message)
        return fragments[match[1]]

    return _PLACEHOLDER.sub(fragment, text)


def ends_body(name: str) -> bool:
    """Return whether a name would end the body of a function, which is between `$cachesync$` or the like."""
    return _TAG.search(name) is not None


def identifier(*parts: str) -> str:
    """Return a quoted SQL identifier; several parts are joined by dots."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def literal(text: str) -> str:
    """Return a quoted SQL string literal, which means the same whatever `standard_conforming_strings` is.

    The bodies of the triggers' functions are read with the settings of the session that writes.
    """
    quoted = text.replace("'", "''")
    if "\\" not in text:
        return f"'{quoted}'"
    escaped = quoted.replace("\\", "\\\\")
    return f"E'{escaped}'"
