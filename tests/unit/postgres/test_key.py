"""The text of a key, from the texts of its columns' values and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesync.errors import InvalidValueError
from cachesync.postgres.key import Key
from tests.unit.serving.stand_in import column

WORDS = Key((column("word", "text", "S"), column("form", "text", "S")))
LINES = Key((column("order_id", "int8", "N"), column("line", "int4", "N")))
PARTS = st.text(st.sampled_from("/~01a\\\"' \n{}é😀"))


@given(one=st.tuples(PARTS, PARTS), other=st.tuples(PARTS, PARTS))
def test_the_text_of_a_key_has_one_meaning(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert WORDS.parts(WORDS.canonical(one)) == list(one)
    assert WORDS.canonical(WORDS.canonical(one)) == WORDS.canonical(one)
    assert (WORDS.canonical(one) == WORDS.canonical(other)) == (one == other)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("", ""), "/"),
        (("a", "b"), "a/b"),
        (("a/b", ""), "a~1b/"),
        (("~1", "~0"), "~01/~00"),
        (("a\\/", "'\""), "a\\~1/'\""),
    ],
)
def test_separators_within_a_part_are_escaped(parts: tuple[str, str], text: str) -> None:
    assert WORDS.canonical(parts) == text


def test_the_text_of_a_key_of_one_column_is_that_of_the_column() -> None:
    for text in ("", "a/b", "~", "~1"):
        assert Key(WORDS.columns[:1]).canonical(text) == text
        assert Key(WORDS.columns[:1]).canonical((text,)) == text
        assert Key(WORDS.columns[:1]).parts(text) == [text]


@pytest.mark.parametrize(
    "given_key", ["7", "7/2/1", "", ("7",), ("7", "2", "1"), (), 7, None, b"7/2", {"7": "2"}]
)
def test_what_does_not_have_a_part_for_each_column_is_not_a_key(given_key: Any) -> None:
    with pytest.raises(InvalidValueError):
        LINES.canonical(given_key)


@pytest.mark.parametrize(
    ("given_key", "column_name"), [("x/2", "order_id"), ("7/2147483648", "line"), (("7", 2), "line")]
)
def test_a_part_that_is_not_valid_names_its_column(given_key: Any, column_name: str) -> None:
    with pytest.raises(InvalidValueError) as invalid:
        LINES.canonical(given_key)
    assert invalid.value.column == column_name
