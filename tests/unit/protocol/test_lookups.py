"""Lookups keep the promises of the protocol in every interleaving, and not without any one of their rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from cachesync.slots.layout import ABSENT
from cachesync.slots.scripts import script
from cachesync.value import encode_head
from tests.unit.protocol.faults import Fault
from tests.unit.protocol.lookups import Find, Model, Rules, Scope, Write, names
from tests.unit.protocol.scripts import Scripts
from tests.unit.protocol.search import search

if TYPE_CHECKING:
    from tests.unit.protocol.scripts import Name

_TAKE: Final = Write(1, has=True)
_GIVE: Final = Write(1, has=False)
_OUR_TAKE: Final = Write(1, has=True, ours=True)
_OUR_GIVE: Final = Write(1, has=False, ours=True)
_OTHER_TAKES: Final = Write(2, has=True)

_SCOPES: Final = (
    Scope("takes", (Find(), Find(), _TAKE, _OUR_GIVE), slot=ABSENT),
    Scope("moves", (Find(), Find(), _OUR_GIVE, _OTHER_TAKES), holder=1, slot=names(1)),
    Scope(
        "moves-by-an-insert",
        (Find(), _OUR_GIVE, Write(2, has=True, inserts=True), Write(2, has=False)),
        holder=1,
        slot=names(1),
    ),
    Scope("our-takes", (Find(), Find(), _OUR_TAKE, Write(2, has=True, ours=True)), slot=ABSENT),
    Scope("our-unknown", (Find(), Find(), Write(1, has=True, ours=True, known=False)), slot=ABSENT),
    Scope("unknown", (Find(), Find(), Write(1, has=True, known=False), _GIVE), slot=ABSENT),
    Scope("too-large", (Find(), Find(), Write(1, has=True, payload=False), _GIVE), slot=ABSENT),
    Scope("invalidated", (Find(), Find(), _OUR_GIVE, _OTHER_TAKES), holder=1, slot=names(1), refreshes=False),
    Scope("declared-again", (Find(), Find(), _TAKE, _GIVE), slot=ABSENT, follows=False),
    Scope("opened-again", (Find(), Find(), _OUR_TAKE, _GIVE), slot=ABSENT, follows=False, opened=False),
    Scope("advances", (Find(), Find(), _OUR_GIVE, _OTHER_TAKES), holder=1, slot=names(1), advances=True),
)
SCOPES: Final = {scope.name: scope for scope in _SCOPES}


@pytest.mark.parametrize("name", SCOPES)
def test_no_interleaving_breaks_the_protocol(name: str) -> None:
    found = search(Model(SCOPES[name]))
    assert found.fault is None, "\n".join([f"{found.fault}:", *found.story])
    print(f"{name}: {found.states} states")  # noqa: T201 - what the search covers, for `pytest -rP`


@pytest.mark.parametrize(
    ("rules", "scope", "fault"),
    [
        pytest.param(Rules(verifies=False), "moves", Fault.STALE, id="no-verification"),
        pytest.param(Rules(settles=False), "our-takes", Fault.OLDER, id="settled-without-lookups"),
        pytest.param(Rules(settles_unknown=False), "our-unknown", Fault.OLDER, id="settled-without-unknown"),
        pytest.param(Rules(applies=False), "takes", Fault.FALSE_ABSENT, id="events-ignored"),
        pytest.param(
            Rules(applies_without_payload=False), "too-large", Fault.FALSE_ABSENT, id="no-payload-ignored"
        ),
        pytest.param(Rules(applies_unknown=False), "unknown", Fault.FALSE_ABSENT, id="unknown-ignored"),
        pytest.param(Rules(begins=False), "declared-again", Fault.FALSE_ABSENT, id="nothing-begun"),
        pytest.param(Rules(opens=False), "opened-again", Fault.OLDER, id="nothing-emptied-at-the-opening"),
        pytest.param(Rules(compares=False), "moves", Fault.TAKEN, id="another-content-replaced"),
        pytest.param(
            Rules(empties_absent=encode_head(0)), "unknown", Fault.FALSE_ABSENT, id="leases-fill-absent"
        ),
    ],
)
def test_lookups_need_each_of_their_rules(rules: Rules, scope: str, fault: Fault) -> None:
    assert search(Model(SCOPES[scope], rules), frozenset({fault})).fault is fault


@pytest.mark.parametrize(
    ("names_of_scripts", "text", "edited", "scope", "fault"),
    [
        pytest.param(
            ("fill",), "if version >= floor then", "if true then", "takes", Fault.FALSE_ABSENT, id="fill"
        ),
        pytest.param(
            ("change", "changes"),
            "    redis.call('DEL', name)\n    return 'emptied'\nend",
            "    return 'older'\nend",
            "takes",
            Fault.FALSE_ABSENT,
            id="absent-kept",
        ),
        pytest.param(
            ("change", "changes"),
            "    redis.call('DEL', name)\n    return 'emptied'\nend",
            "    return 'older'\nend",
            "our-takes",
            Fault.OLDER,
            id="absent-kept-after-an-acknowledgement",
        ),
        pytest.param(
            ("change", "changes"),
            "store(name, 'L' .. version .. held, 'KEEPTTL') or",
            "",
            "takes",
            Fault.FALSE_ABSENT,
            id="floor-not-raised",
        ),
        pytest.param(("lease",), "slot == ARGV[5]", "ARGV[5] ~= ''", "moves", Fault.TAKEN, id="lease"),
    ],
)
def test_edited_script_breaks_lookups(
    names_of_scripts: tuple[Name, ...], text: str, edited: str, scope: str, fault: Fault
) -> None:
    sources: dict[Name, str] = {}
    for name in names_of_scripts:
        shipped = script(name).source
        assert shipped.count(text) == 1
        sources[name] = shipped.replace(text, edited)
    model = Model(SCOPES[scope], scripts=Scripts(sources))
    assert search(model, frozenset({fault})).fault is fault
