"""Keys in canonical form."""

from __future__ import annotations

import pytest

from cachesync.errors import InvalidValueError
from tests.unit.serving.stand_in import column

TEXT = column("word", "text", "S")


@pytest.mark.parametrize("key", ["", "a", "ä€😀", "a/b?c"])
def test_a_text_is_its_own_canonical_key(key: str) -> None:
    assert TEXT.canonical_key(key) == key


@pytest.mark.parametrize("key", ["\0", "a\0b", "\ud800", "a\udfff"])
def test_a_text_that_postgresql_cannot_store_is_not_a_key(key: str) -> None:
    with pytest.raises(InvalidValueError, match="is not a valid value of type text") as invalid:
        TEXT.canonical_key(key)
    assert invalid.value.column == "word"
