"""The texts of mistakes in settings, declarations and options: in words, with the nearest right name."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_NUMBER: Final = "must be a number"
_LIST: Final = "must be a list"
# By the type of pydantic's error. Its own texts are about Python: "Input should be a valid tuple".
_WORDS: Final = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "enum": "must be {expected}",
    "extra_forbidden": "is unknown",
    "finite_number": "must be a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "int_parsing_size": "has too many digits",
    "int_type": "must be an integer",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": _LIST,
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "path_not_file": "must be the path of an existing file",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "string_type": "must be text",
    "string_unicode": "contains a byte that is not part of UTF-8",
    "too_short": "must not be empty",
    "tuple_type": _LIST,
}


def in_words(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """Return what is wrong with a value as the predicate of a sentence, such as `must be an integer`.

    Args:
        kind: the type of pydantic's error.
        message: its text, which is used if the type has no words here. A validator's text that begins with
            `must` is a predicate, too.
        context: its details.
    """
    text = message.removeprefix("Value error, ")
    if text.startswith("must "):
        return text
    if kind == "string_too_short" and context.get("min_length") == 1:
        return _WORDS["too_short"]
    words = _WORDS.get(kind)
    context = {
        name: int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        for name, limit in context.items()
    }
    return f"is invalid: {text}" if words is None else words.format(**context)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the known name that is closest to a name, or an empty text.

    Args:
        name: a name that is not known.
        known: the known names.
    """
    nearest = nearest_name(name, known)
    return f"; did you mean {nearest!r}?" if nearest else ""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a name is most likely a misspelling of; None if there is none."""
    by_folded = {other.casefold(): other for other in known if other != name}
    nearest = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.65)
    return by_folded[nearest[0]] if nearest else None


def matching(pattern: str, words: str) -> Callable[[str], str]:
    """Return a validator of texts for pydantic, which describes what it accepts in words.

    Args:
        pattern: the regular expression that the whole text must match.
        words: what it accepts, such as `a URL path such as /students`.
    """
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            message = f"must be {words}"
            raise ValueError(message)
        return text

    return check
