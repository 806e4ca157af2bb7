"""The tree of errors."""

from __future__ import annotations

import inspect
import pickle
import re
from importlib import import_module
from pkgutil import walk_packages

import pytest

import cachesync
from cachesync import errors
from cachesync.errors import (
    CacheSyncError,
    ConstraintViolatedError,
    DuplicateRowError,
    InvalidValueError,
    ReferenceViolatedError,
)

LINE = re.compile(r"^(?P<indent>(?:│   |    )*)(?:[├└]── )?(?P<name>\w+Error)$")
INDENT = 4


def drawn() -> dict[str, str]:
    """The parents of the errors as the module's docstring draws them."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        found = LINE.match(line.removeprefix(" " * INDENT))
        if found is None:
            continue
        depth = 0 if "── " not in line else 1 + len(found["indent"]) // INDENT
        above[depth:] = [found["name"]]
        parents[found["name"]] = above[depth - 1] if depth else "Exception"
    return parents


def defined() -> dict[str, str]:
    """The parents of the errors as the module defines them."""
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    return {
        one.__name__: one.__bases__[0].__name__
        for one in classes
        if issubclass(one, Exception) and one.__module__ == errors.__name__
    }


def test_drawn_tree_matches_the_classes() -> None:
    assert drawn() == defined()
    assert len(drawn()) > 1


def test_every_public_error_derives_from_cachesync_error() -> None:
    modules = [
        import_module(module.name)
        for module in walk_packages(cachesync.__path__, "cachesync.")
        if not module.name.endswith("__main__")
    ]
    classes = {
        value
        for module in modules
        for name, value in vars(module).items()
        # Not `isinstance`, which would load Django's settings.
        if issubclass(type(value), type)
        and value.__module__.startswith("cachesync.")
        and not name.startswith("_")
    }
    exceptions = {one for one in classes if issubclass(one, BaseException)}
    assert {one.__name__ for one in exceptions if not issubclass(one, CacheSyncError)} == set()
    assert CacheSyncError in exceptions


DETAILED = [
    (DuplicateRowError(("id",), "Key (id)=(1) already exists."), "Key (id)=(1) already exists."),
    (ConstraintViolatedError("c", ("name", "age"), "must not be null"), "name, age: must not be null"),
    (ConstraintViolatedError(None, (), "refused by a trigger"), "refused by a trigger"),
    (ReferenceViolatedError("fk", ("course",), "is not present"), "course: is not present"),
    (InvalidValueError("age", "out of range"), "age: out of range"),
    (InvalidValueError(None, "not a JSON document"), "not a JSON document"),
]


@pytest.mark.parametrize(("error", "text"), DETAILED)
def test_text_names_the_columns(error: CacheSyncError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(("error", "text"), DETAILED)
def test_errors_survive_pickling(error: CacheSyncError, text: str) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (type(error), text, vars(error))
