"""Entity tags, and the preconditions that name them (RFC 9110, section 13)."""

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
# What no row has: tags that can match none of ours still have to be compared with a row.
_NO_VERSION: Final = 0


def etag(version: int) -> str:
    """The strong tag of a row version."""
    return f'"{version}"'


def none_match(header: str, tag: str) -> bool:
    """Whether `If-None-Match` names none that is equal to the row's tag, by the weak comparison."""
    if header == tag:
        return False
    tags = _tags(_IF_NONE_MATCH, header)
    return tags is not None and not any(one.removeprefix("W/") == tag for one in tags)


def expected_versions(request: Request) -> frozenset[int] | None:
    """The row versions of which `If-Match` accepts one; empty: any; None: the header is not there."""
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
    """Whether a PUT says `If-None-Match: *`."""
    header = request.get_header(_IF_NONE_MATCH)
    if header is None:
        return False
    if header.strip() != "*":
        raise _invalid(_IF_NONE_MATCH, "a PUT takes nothing but * here")
    if request.get_header(_IF_MATCH) is not None:
        raise _invalid(_IF_NONE_MATCH, "it contradicts If-Match")
    return True


def refuse(request: Request, *names: str) -> None:
    """Refuse preconditions that this method would otherwise ignore."""
    for name in names:
        if request.get_header(name) is not None:
            raise _invalid(name, f"a {request.method} does not take it here")


def _tags(name: str, header: str) -> list[str] | None:
    """The tags of a list; None where it is `*`."""
    if header.strip() == "*":
        return None
    if not _LIST.fullmatch(header):
        raise _invalid(name, 'must be * or a list of entity tags such as "42"')
    return re.findall(_TAG, header)


def _invalid(name: str, message: str) -> Exception:
    return field_problem(INVALID_HEADER, FieldError(name, message))
