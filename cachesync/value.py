"""Values: what a slot and a message hold of a row, in the same bytes.

`V`, row version (19 digits), schema fingerprint (8), payload. The parts before the payload have fixed widths,
so that they are found without parsing. Versions compare as strings: a Lua number would lose the low bits of a
64-bit version.
"""

from __future__ import annotations

from typing import Final

_LETTER: Final = ord("V")
_DIGITS: Final = 19

VERSION: Final = slice(1, 1 + _DIGITS)
"""Where the version is, in a value and in the other slots that have one."""

UP_TO_PAYLOAD: Final = VERSION.stop + 8
"""Length of the part of a value that precedes its payload, in bytes."""

FINGERPRINT: Final = slice(VERSION.stop, UP_TO_PAYLOAD)
"""Where the schema fingerprint of a value is."""

HIGHEST_VERSION: Final = b"9" * _DIGITS
"""Higher than every version that a sequence can draw, encoded."""


def encode_version(version: int) -> bytes:
    """Encode a row version in the form that the scripts compare."""
    return b"%019d" % version


def encode_head(version: int) -> bytes:
    """Encode the part of a value that ends with its row version."""
    return b"V%019d" % version


def encode_value(version: int, fingerprint: bytes, payload: bytes) -> bytes:
    """Encode a row."""
    return b"V%019d%b%b" % (version, fingerprint, payload)


def is_value(content: bytes) -> bool:
    """Return whether the content of a slot or a message, of which the beginning suffices, is a value."""
    return len(content) > UP_TO_PAYLOAD and content[0] == _LETTER and content[VERSION].isdigit()


def version_of(value: bytes) -> int:
    """Return the row version of a value."""
    return int(value[VERSION])
