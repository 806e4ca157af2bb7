"""Requests about dead letters that cannot be carried out."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from cachesync.dead_letters.request import Request


@pytest.mark.parametrize(
    "name", ["zz", "parking-lot:0", "parking-lot:0:17x", " parking-lot:0:17", "other:0:17"]
)
def test_name_that_is_not_a_letters_is_quoted(name: str) -> None:
    text = f"{name!r} is not the name of a letter, such as parking-lot:0:17; list shows the names"
    with pytest.raises(ValidationError, match=re.escape(text)):
        Request.model_validate({"action": "show", "letters": [name]})


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_all_letters_must_be_selected_explicitly(action: str) -> None:
    text = f"{action} requires letters, a topic, a service, an entity or a key; set all (--all) to select"
    with pytest.raises(ValidationError, match=re.escape(text)):
        Request.model_validate({"action": action, "reason": "known"})
    assert Request.model_validate({"action": action, "reason": "known", "all": True}).all
