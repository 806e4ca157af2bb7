"""The shipped scripts keep the promises of the protocol in every interleaving."""

from __future__ import annotations

import pytest

from tests.unit.protocol.model import Model
from tests.unit.protocol.scopes import SCOPES
from tests.unit.protocol.search import search


@pytest.mark.parametrize("name", SCOPES)
def test_no_interleaving_breaks_the_protocol(name: str) -> None:
    found = search(Model(SCOPES[name]))
    assert found.fault is None, "\n".join([f"{found.fault}:", *found.story])
    print(f"{name}: {found.states} states")  # noqa: T201 - what the search covers, for `pytest -rP`
