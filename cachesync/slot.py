"""What a cache holds for one row: one Redis string per slot.

======  =============================================================  ====================
state   bytes                                                          a read
======  =============================================================  ====================
empty   no such string                                                 takes the lease
lease   `L`, floor (19 digits), token                                  waits
value   `V`, row version (19 digits), fingerprint (8), payload         is a hit
absent  `A`                                                            is a hit: no such row
======  =============================================================  ====================

Versions are decimal digits of one width, so that they compare as strings: a Lua number would lose the
low bits of a 64-bit version.
"""

from __future__ import annotations

import random
import secrets
from functools import cache
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Final

from cachesync.change import Row

if TYPE_CHECKING:
    from datetime import timedelta

ABSENT: Final = b"A"
EMPTY: Final = b""
_VALUE: Final = ord("V")
_LEASE: Final = ord("L")
_DIGITS: Final = 19
HEAD_BYTES: Final = 1 + _DIGITS
"""How much of a slot says what it is, and which version."""

UP_TO_PAYLOAD: Final = HEAD_BYTES + 8
"""How much of a value comes before its payload."""

_FINGERPRINT: Final = slice(HEAD_BYTES, UP_TO_PAYLOAD)


def slot_name(service: str, entity: str, key: str) -> str:
    """The Redis key of a row's slot."""
    return f"{service}:{entity}:{key}"


def encode_version(version: int) -> bytes:
    """A row version as the scripts compare it."""
    return b"%019d" % version


def encode_value(version: int, fingerprint: bytes, payload: bytes) -> bytes:
    """The content of a slot that holds a row."""
    return b"V%019d%b%b" % (version, fingerprint, payload)


def decode_value(slot: bytes, key: str, fingerprint: bytes) -> Row | None:
    """The row that a slot holds; None where it holds none of this schema."""
    if slot[0] != _VALUE or slot[_FINGERPRINT] != fingerprint:
        return None
    return Row(key, int(slot[1:HEAD_BYTES]), fingerprint, slot[UP_TO_PAYLOAD:])


def is_past(head: bytes, version: int) -> bool:
    """Whether a change of this version has nothing to do in a slot that begins so; it may be empty."""
    if not head:
        return True
    return head[0] in {_VALUE, _LEASE} and head[1:HEAD_BYTES] >= encode_version(version)


def with_jitter(ttl: timedelta) -> int:
    """Milliseconds, up to a tenth less than asked: what was cached together must not expire together."""
    return max(1, int(ttl.total_seconds() * 1000 * random.uniform(0.9, 1.0)))  # noqa: S311 - no secret


def new_token() -> str:
    """A token that no other lease has."""
    return secrets.token_hex(8)


class Script:
    """A Lua script of this package.

    Attributes:
        source: its text.
        sha: the name under which Redis keeps it.
    """

    def __init__(self, name: str) -> None:
        self.source = (resources.files("cachesync") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


@cache
def script(name: str) -> Script:
    """The script `lua/{name}.lua`."""
    return Script(name)
