"""Entity tags and preconditions (RFC 9110, section 13)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from serving.problems import INVALID_HEADER, FieldError, field_problem

if TYPE_CHECKING:
    from serving.request import Request

_IF_MATCH: Final = "If-Match"
_IF_NONE_MATCH: Final = "If-None-Match"
_TAG: Final = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_LIST: Final = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_VERSION: Final = re.compile(r'"([1-9][0-9]{0,18})"')
_GREATEST: Final = 2**63 - 1
# No row has this version. Stands for the tags that match no row, but still form a precondition.
_NO_VERSION: Final = 0


def etag(version: int) -> str:
    """Return the strong entity tag of a row version."""
    return f'"{version}"'


def none_match(header: str, tag: str) -> bool:
    """Evaluate `If-None-Match` with the weak comparison.

    Args:
        header: the value of the header.
        tag: the entity tag of the row.

    Returns:
        True if no tag in the header matches the row's.

    Raises:
        Problem: the header is malformed.
    """
    if header == tag:
        return False
    tags = _tags(_IF_NONE_MATCH, header)
    return tags is not None and not any(one.removeprefix("W/") == tag for one in tags)


def expected_versions(request: Request) -> frozenset[int] | None:
    """Return the row versions that `If-Match` accepts.

    Returns:
        None without the header; an empty set for `*`, which accepts any version.

    Raises:
        Problem: the header is malformed.
    """
    header = request.get_header(_IF_MATCH)
    if header is None:
        return None
    tags = _tags(_IF_MATCH, header)
    if tags is None:
        return frozenset()
    versions = (_VERSION.fullmatch(tag) for tag in tags)
    known = frozenset(int(version[1]) for version in versions if version)
    return frozenset(version for version in known if version <= _GREATEST) or frozenset({_NO_VERSION})


def creates_only(request: Request) -> bool:
    """Return whether a PUT request has `If-None-Match: *` and must therefore not replace a row.

    Raises:
        Problem: the header has another value, or is combined with `If-Match`.
    """
    header = request.get_header(_IF_NONE_MATCH)
    if header is None:
        return False
    if header.strip() != "*":
        raise _invalid(_IF_NONE_MATCH, "must be * in a PUT request")
    if request.get_header(_IF_MATCH) is not None:
        raise _invalid(_IF_NONE_MATCH, "cannot be combined with If-Match")
    return True


def refuse(request: Request, *names: str) -> None:
    """Reject headers that the method does not support, instead of ignoring a precondition.

    Args:
        request: the request.
        names: the headers.

    Raises:
        Problem: the request has one of the headers.
    """
    for name in names:
        if request.get_header(name) is not None:
            raise _invalid(name, f"is not supported for {request.method} requests on this path")


def _tags(name: str, header: str) -> list[str] | None:
    """Return the tags of a list; None for `*`."""
    if header.strip() == "*":
        return None
    if not _LIST.fullmatch(header):
        raise _invalid(name, 'must be * or a list of entity tags such as "42"')
    return re.findall(_TAG, header)


def _invalid(name: str, message: str) -> Exception:
    return field_problem(INVALID_HEADER, FieldError(name, message))
