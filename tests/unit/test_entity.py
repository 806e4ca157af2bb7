"""The entities file."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cachesync.entity import CANARY, load_entities, with_canary
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
    assert (thing.name, thing.schema_and_table, thing.key) == ("thing", ("shop", "thing"), ("id",))
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
        (THING.replace("[thing]", "[[thing]]"), "[[thing]] must be [thing], a section of its own for each"),
        (THING.replace('key = "id"\n', ""), "thing.key is missing"),
        (THING + 'color = "red"\n', "thing.color is unknown; the fields are table, key, columns, unique, "),
        (
            THING + 'unique = "id"\n',
            "thing.unique must be a list; each item is the name of a column, or a list",
        ),
        (THING + 'unique = ["a", ["a"]]\n', "thing.unique must not list the same columns twice"),
        (THING + 'unique = [["a", "a"]]\n', "thing.unique.0 must not list a column twice"),
        (THING + 'unique = ["id"]\n', "thing.unique must not list the key, by which a row is found anyway"),
        (
            THING + 'unique = [["a", "as_"]]\n',
            "thing.unique must not name the column 'as_', because `get_by` has a parameter of this name",
        ),
        (
            THING + 'columns = ["id"]\nunique = ["a"]\n',
            "thing.unique must not name the column 'a', which the declared columns do not include",
        ),
        (
            THING.replace('key = "id"', 'key = ["a", "b", "c"]') + 'unique = ["d"]\n',
            "thing.unique must not have a lookup by 1 for a key of 3 columns",
        ),
        (THING + 'colums = ["id"]\n', "thing.colums is unknown; did you mean 'columns'?"),
        (THING + 'on-change = "refresh"\n', "thing.on-change is unknown; did you mean 'on_change'?"),
        (THING.replace('"1h"', '"1 hour"'), "thing.ttl must be a duration such as '500ms', '30s', '10m', "),
        (THING.replace('"1h"', '"0s"'), "'1h' or '1d', not '0s'"),
        (THING.replace('"1h"', "60"), "'1h' or '1d', not 60"),
        (THING.replace('"1h"', '"9999999999d"'), "'1h' or '1d', not '9999999999d'"),
        (THING.replace('"1h"', '"999999999d"'), "thing.ttl must be at most '3650d', not '999999999d'"),
        (THING.replace('"1h"', '"\u0661h"'), "thing.ttl must be a duration"),
        (THING + 'on_change = "forget"\n', "thing.on_change must be 'refresh' or 'invalidate'"),
        (THING.replace("[thing]", "[Thing]"), "[Thing] must be the name of an entity: a lowercase letter, "),
        (THING.replace('"/things"', '"things"'), "thing.path must be a path such as /students"),
        (THING.replace('"shop.thing"', '"a.b.c"'), "thing.table must be the name of a table, as name or "),
        (THING.replace('"shop.thing"', "7"), "thing.table must be text"),
        (THING.replace("[thing]", f"[{'x' * 41}]"), f"[{'x' * 41}] must be the name of an entity"),
        (THING + 'name = "other"\n', "thing.name: remove it; the section name is the name of the entity"),
        (THING + '[thing.more]\nkey = "id"\n', "thing.more is unknown"),
        (THING.replace('"id"', '""'), "thing.key must not be empty"),
        (THING.replace('"id"', f'"{"k" * 64}"'), "thing.key must have at most 63 characters"),
        (THING + 'columns = "id"\n', "thing.columns must be a list"),
        (THING + 'columns = ["id", 7]\n', "thing.columns.1 must be text"),
        (THING + 'columns = ["id", "id"]\n', "thing.columns must not list a column twice"),
        (THING.replace('"id"', "7"), "thing.key must be the name of a column, or a list of such names"),
        (THING.replace('"id"', "[]"), "thing.key must be the name of a column, or a list of such names"),
        (THING.replace('"id"', '["id", ""]'), "thing.key.1 must not be empty"),
        (THING.replace('"id"', '["id", 7]'), "thing.key.1 must be text"),
        (THING.replace('"id"', '["id", "id"]'), "thing.key must not list a column twice"),
        (
            THING.replace('"id"', '["id", "line"]') + 'columns = ["id"]\n',
            "thing.columns must include the key column 'line'",
        ),
        (THING + 'columns = ["name"]\n', "thing.columns must include the key column 'id'"),
        (THING + "columns = []\n", "thing.columns must include the key column 'id'"),
        (
            THING.replace("[thing]", "[billing.invoice]"),
            "has a dot in its name; name the entity [invoice], and give the schema in its table: table = ",
        ),
        (THING + THING.replace("[thing]", "[other]"), "'thing' and 'other' have the same table"),
        (
            THING.replace("shop.", "") + THING.replace("[thing]", "[other]").replace("shop.", "public."),
            "'thing' and 'other' have the same table",
        ),
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
    assert "Input" not in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_all_mistakes_of_a_file_are_reported_with_one_line_each(tmp_path: Path) -> None:
    first = THING.replace('"1h"', '"1 hour"').replace("absent_ttl", "absent_tll") + 'columns = ["id", "id"]\n'
    second = THING.replace("[thing]", '["O\\ndd"]').replace("shop.thing", "a.b.c")
    file = write(tmp_path, first + second + "[shop.basket]\n")
    with pytest.raises(DeclarationError) as caught:
        load_entities(file)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert [line.removeprefix(f"{file}: ").split(" ", 2)[:2] for line in lines] == [
        ["thing.columns", "must"],
        ["thing.ttl", "must"],
        ["thing.absent_ttl", "is"],
        ["thing.absent_tll", "is"],
        ["[O\\ndd]", "must"],
        ["O\\ndd.table", "must"],
        ["[shop.basket]", "has"],
        ["'thing'", "and"],
    ]


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


def test_a_key_can_have_several_columns(tmp_path: Path) -> None:
    text = THING.replace('"id"', '["order id", "line"]') + 'columns = ["line", "order id", "x"]\n'
    (thing,) = load_entities(write(tmp_path, text)).values()
    assert thing.key == ("order id", "line")


def test_name_of_the_live_checks_own_entity_is_refused_also_of_an_entity_built_in_code(
    tmp_path: Path,
) -> None:
    with pytest.raises(DeclarationError, match=f"{CANARY.name}.*rename it"):
        load_entities(write(tmp_path, THING.replace("[thing]", f"[{CANARY.name}]")))
    (thing,) = load_entities(write(tmp_path, THING)).values()
    with pytest.raises(DeclarationError, match=f"{CANARY.name}.*rename it"):
        with_canary({CANARY.name: thing.model_copy(update={"name": CANARY.name})})
