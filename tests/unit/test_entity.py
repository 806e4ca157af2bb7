"""The entities file."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cachesync.entity import load_entities
from cachesync.errors import DeclarationError

if TYPE_CHECKING:
    from pathlib import Path

THING = '[thing]\ntable = "shop.thing"\nkey = "id"\nttl = "1h"\nabsent_ttl = "500ms"\npath = "/things"\n'


def write(folder: Path, text: str) -> Path:
    file = folder / "entities.toml"
    file.write_text(text)
    return file


def test_section_declares_an_entity(tmp_path: Path) -> None:
    (thing,) = load_entities(write(tmp_path, THING)).values()
    assert (thing.name, thing.schema_and_table, thing.key) == ("thing", ("shop", "thing"), "id")
    assert (thing.ttl, thing.absent_ttl) == (timedelta(hours=1), timedelta(seconds=0.5))
    assert (thing.columns, thing.on_change, thing.path) == (None, "refresh", "/things")
    assert thing.topic == "cachesync.thing"


def test_table_without_a_schema_is_in_public(tmp_path: Path) -> None:
    (thing,) = load_entities(write(tmp_path, THING.replace("shop.", ""))).values()
    assert thing.schema_and_table == ("public", "thing")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "declares no entities; each entity is a [section]"),
        ("[thing", "is not valid TOML"),
        ("stray = 1\n" + THING, "'stray' is outside a section"),
        (THING.replace('key = "id"\n', ""), "thing.key: Field required"),
        (THING + 'color = "red"\n', "thing.color: Extra inputs"),
        (THING.replace('"1h"', '"1 hour"'), "thing.ttl: '1 hour' is not a duration such as"),
        (THING.replace('"1h"', '"0s"'), "thing.ttl: '0s' is not a duration"),
        (THING.replace('"1h"', "60"), "thing.ttl: 60 is not a duration"),
        (THING + 'on_change = "forget"\n', "thing.on_change"),
        (THING.replace("[thing]", "[Thing]"), "Thing.name"),
        (THING.replace('"/things"', '"things"'), "thing.path"),
        (THING.replace('"shop.thing"', '"a.b.c"'), "thing.table"),
        (THING.replace("[thing]", f"[{'x' * 41}]"), f"{'x' * 41}.name: String should match"),
        (THING + 'name = "other"\n', "thing.name: remove it; the section name is the name of the entity"),
        (THING + '[thing.more]\nkey = "id"\n', "thing.more: Extra inputs"),
        (THING.replace('"id"', '""'), "thing.key: String should have at least 1 character"),
        (THING.replace('"id"', f'"{"k" * 64}"'), "thing.key: String should have at most 63 characters"),
        (THING + 'columns = "id"\n', "thing.columns: Input should be a valid tuple"),
        (THING + 'columns = ["id", "id"]\n', "thing: columns lists a column twice"),
        (THING + 'columns = ["name"]\n', "thing: columns must include the key column 'id'"),
        (THING + THING.replace("[thing]", "[other]"), "'thing' and 'other' have the same table"),
        (
            THING + THING.replace("[thing]", "[other]").replace("shop.thing", "shop.other"),
            "'thing' and 'other' have the same path",
        ),
    ],
)
def test_error_names_the_file_the_place_and_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(DeclarationError) as caught:
        load_entities(file)
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)


def test_error_names_a_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "entities.toml"
    file.write_bytes(b"[th\xecng]")
    with pytest.raises(DeclarationError, match=r"entities\.toml is not valid TOML: 'utf-8' codec"):
        load_entities(file)


def test_entities_keep_the_order_of_the_file(tmp_path: Path) -> None:
    text = THING + THING.replace("thing", "other") + THING.replace("thing", "another")
    assert list(load_entities(write(tmp_path, text))) == ["thing", "other", "another"]


def test_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"cannot read .*missing\.toml: No such file"):
        load_entities(tmp_path / "missing.toml")
