"""Without any one of the rules of the scripts and their callers, the protocol fails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from cachesync.slots.scripts import script
from tests.unit.protocol.faults import Fault
from tests.unit.protocol.model import Model
from tests.unit.protocol.scopes import SCOPES
from tests.unit.protocol.scripts import Scripts
from tests.unit.protocol.search import search
from tests.unit.protocol.world import Rules

if TYPE_CHECKING:
    from tests.unit.protocol.scripts import Name


@dataclass(frozen=True)
class Mutation:
    """An edit of a script, and the fault that it causes in a scope."""

    name: str
    script: Name
    text: str
    edited: str
    scope: str
    fault: Fault


_RAISE = "store(name, 'L' .. version .. held, 'KEEPTTL') or"
_OLDER = "        if version < current then\n            return 'older'\n        end\n"
_REPEATED = "        if version == current then\n            return 'repeated'\n        end\n"
_RAISED = f"{_OLDER}        return store(name, 'L'"
_ADVANCED = f"{_OLDER}        if content == ''"
_EMPTIED = "        if content == '' then\n            redis.call('DEL', name)"
_STORES = "store(KEYS[1], ARGV[2], 'PX', ARGV[3]) or 1"

_MUTATIONS = (
    Mutation(
        "fill-below-the-floor",
        "fill",
        "if version >= floor then",
        "if true then",
        "R1-R2-R10-loads-and-updates",
        Fault.STALE,
    ),
    Mutation(
        "fill-absent-below-the-floor",
        "fill",
        "if version >= floor then",
        "if version >= floor or version == NO_FLOOR then",
        "R7-inserts-over-absent",
        Fault.FALSE_ABSENT,
    ),
    Mutation(
        "refuse-a-fill-at-the-floor",
        "fill",
        "version >= floor",
        "version > floor",
        "R11-two-schemas",
        Fault.REFUSED,
    ),
    Mutation(
        "fill-under-anyone's-lease",
        "fill",
        " or token ~= ARGV[1]",
        "",
        "R1-R2-R10-loads-and-updates",
        Fault.STALE,
    ),
    Mutation(
        "fill-without-a-lease",
        "fill",
        "ARGV[1] then\n    return 0\nend",
        f"ARGV[1] then\n    return {_STORES}\nend",
        "R5-updates-elsewhere",
        Fault.BACKWARDS,
    ),
    Mutation("raise-no-floor", "change", _RAISE, "", "R1-R2-R10-loads-and-updates", Fault.STALE),
    Mutation(
        "raise-no-floor-over-absent", "change", _RAISE, "", "R7-inserts-over-absent", Fault.FALSE_ABSENT
    ),
    Mutation(
        "lower-a-floor",
        "change",
        _RAISED,
        _RAISED.replace("version < current", "false"),
        "R5-updates-elsewhere",
        Fault.STALE,
    ),
    Mutation(
        "raise-a-floor-to-itself",
        "change",
        _REPEATED + _RAISED,
        _RAISED,
        "R5-updates-elsewhere",
        Fault.REWRITTEN,
    ),
    Mutation("raise-a-floor-for-good", "change", ", 'KEEPTTL'", "", "R5-updates-elsewhere", Fault.LASTING),
    Mutation(
        "go-back-to-an-older-change",
        "change",
        _ADVANCED,
        _ADVANCED.replace("version < current", "false"),
        "R5-updates-elsewhere",
        Fault.STALE,
    ),
    Mutation(
        "apply-an-equal-change",
        "change",
        _REPEATED + _ADVANCED,
        _ADVANCED,
        "R11-two-schemas",
        Fault.REWRITTEN,
    ),
    Mutation(
        "keep-a-deleted-row",
        "change",
        _EMPTIED,
        "        if content == '' then",
        "R6-R13-update-delete-and-insert-elsewhere",
        Fault.ORPHAN,
    ),
    Mutation(
        "keep-an-invalidated-row",
        "change",
        _EMPTIED,
        "        if content == '' then",
        "R1-R6-invalidate",
        Fault.STALE,
    ),
    Mutation(
        "keep-absent",
        "change",
        "'raised'\n    end\n    redis.call('DEL', name)",
        "'raised'\n    end",
        "R7-inserts-over-absent",
        Fault.FALSE_ABSENT,
    ),
    Mutation(
        "fill-an-empty-slot-from-an-event",
        "change",
        "if state == 'empty' then\n        return 'empty'",
        "if state == 'empty' and content ~= '' then\n        store(name, content, 'PX', lifetime)\n    end\n"
        "    if state == 'empty' then\n        return 'empty'",
        "R5-updates-elsewhere",
        Fault.STALE,
    ),
    Mutation(
        "fill-any-lease-from-a-change",
        "change",
        "held == token",
        "true",
        "R5-updates-elsewhere",
        Fault.STALE,
    ),
    Mutation(
        "write-below-the-floor",
        "change",
        " and version >= current",
        "",
        "R1-R2-R10-loads-and-updates",
        Fault.STALE,
    ),
    Mutation(
        "refuse-a-write-at-the-floor",
        "change",
        "version >= current",
        "version > current",
        "R4-crashing-updates",
        Fault.REFUSED,
    ),
    Mutation(
        "lease-nothing-over-absent",
        "lease",
        "state == 'absent' and ARGV[4] == 'write'",
        "false",
        "R7-insert-under-its-lease",
        Fault.OLDER,
    ),
    Mutation(
        "lease-over-absent-for-a-read",
        "lease",
        "state == 'absent' and ARGV[4] == 'write'",
        "state == 'absent'",
        "R7-inserts-over-absent",
        Fault.TAKEN,
    ),
    Mutation(
        "lease-over-a-lease",
        "lease",
        "state == 'absent' and ARGV[4] == 'write'",
        "state == 'lease' or state == 'absent' and ARGV[4] == 'write'",
        "R8-waiting-reads",
        Fault.STOLEN,
    ),
    Mutation(
        "lease-over-a-value",
        "lease",
        "state == 'value' and (fingerprint ~= ARGV[3] or slot == ARGV[5])",
        "state == 'value'",
        "R1-R2-R10-loads-and-updates",
        Fault.TAKEN,
    ),
    Mutation(
        "lease-nothing-over-another-schema",
        "lease",
        "state == 'value' and (fingerprint ~= ARGV[3] or slot == ARGV[5])",
        "false",
        "R11-two-schemas",
        Fault.UNSERVED,
    ),
    Mutation("lease-for-good", "lease", ", 'PX', ARGV[2]", "", "R8-waiting-reads", Fault.LASTING),
    Mutation(
        "release-anyone's-lease",
        "release",
        " and token == ARGV[1]",
        "",
        "R8-waiting-reads",
        Fault.STOLEN,
    ),
    Mutation(
        "repair-what-has-changed",
        "repair",
        "slot ~= ARGV[1]",
        "false",
        "reconciled-updates",
        Fault.STALE,
    ),
    Mutation(
        "keep-what-cannot-be-replaced",
        "change",
        "        redis.call('DEL', name)\n        return redis.error_reply",
        "        return redis.error_reply",
        "refused-stores",
        Fault.STALE,
    ),
    Mutation(
        "keep-a-floor-that-cannot-be-raised",
        "change",
        "        redis.call('DEL', name)\n        return redis.error_reply",
        "        return redis.error_reply",
        "refused-stores-over-absent",
        Fault.FALSE_ABSENT,
    ),
    Mutation(
        "lease-nothing-over-garbage",
        "lease",
        "state == 'empty' or state == 'unreadable'",
        "state == 'empty'",
        "garbage",
        Fault.UNSERVED,
    ),
    Mutation(
        "wait-for-a-lease-that-never-ends",
        "lease",
        "left >= 0 and left <= LONGEST_LEASE",
        "true",
        "garbage",
        Fault.UNSERVED,
    ),
    Mutation(
        "read-any-version",
        "lease",
        "'^([VL])(%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d)'",
        "'^([VL])(...................)'",
        "garbage",
        Fault.REFUSED,
    ),
    Mutation(
        "fill-an-empty-slot-from-a-read",
        "advance",
        "if state == 'empty' then\n        return 'empty'",
        "if state == 'empty' and content ~= '' then\n        store(name, content, 'PX', lifetime)\n    end\n"
        "    if state == 'empty' then\n        return 'empty'",
        "advances",
        Fault.STALE,
    ),
    Mutation(
        "go-back-to-an-older-read",
        "advance",
        _ADVANCED,
        _ADVANCED.replace("version < current", "false"),
        "advances",
        Fault.BACKWARDS,
    ),
    Mutation("raise-no-floor-to-a-read", "advance", _RAISE, "", "advances", Fault.OLDER),
    Mutation(
        "keep-a-row-that-a-read-did-not-find",
        "advance",
        _EMPTIED,
        "        if content == '' then",
        "advances-after-deletes-and-inserts",
        Fault.OLDER,
    ),
    Mutation(
        "go-back-to-an-older-change-of-another-row",
        "change",
        _ADVANCED,
        _ADVANCED.replace("version < current", "false"),
        "cascading-updates",
        Fault.STALE,
    ),
    Mutation(
        "raise-no-floor-to-a-cascading-delete",
        "change",
        _RAISE,
        "",
        "cascading-delete",
        Fault.ORPHAN,
    ),
    Mutation(
        "keep-absent-over-a-row-that-a-trigger-inserted",
        "change",
        "'raised'\n    end\n    redis.call('DEL', name)",
        "'raised'\n    end",
        "inserts-by-triggers",
        Fault.OLDER,
    ),
    Mutation(
        "go-back-to-an-older-read-after-a-cascading-update",
        "advance",
        _ADVANCED,
        _ADVANCED.replace("version < current", "false"),
        "cascading-update-beside-an-advance",
        Fault.OLDER,
    ),
    Mutation(
        "go-back-to-an-older-change-of-an-own-transaction",
        "change",
        _ADVANCED,
        _ADVANCED.replace("version < current", "false"),
        "own-updates",
        Fault.STALE,
    ),
    Mutation(
        "raise-no-floor-to-an-own-transaction",
        "change",
        _RAISE,
        "",
        "own-update-beside",
        Fault.OLDER,
    ),
    Mutation(
        "fill-an-empty-slot-from-an-own-transaction",
        "change",
        "if state == 'empty' then\n        return 'empty'",
        "if state == 'empty' and content ~= '' then\n        store(name, content, 'PX', lifetime)\n    end\n"
        "    if state == 'empty' then\n        return 'empty'",
        "own-updates",
        Fault.STALE,
    ),
    Mutation(
        "keep-absent-over-a-row-that-an-own-transaction-inserted",
        "change",
        "'raised'\n    end\n    redis.call('DEL', name)",
        "'raised'\n    end",
        "own-insert",
        Fault.OLDER,
    ),
    Mutation(
        "keep-a-row-that-an-own-transaction-deleted",
        "change",
        _EMPTIED,
        "        if content == '' then",
        "own-delete",
        Fault.OLDER,
    ),
    Mutation("repair-for-good", "repair", ", 'PX', ARGV[3]", "", "stale", Fault.LASTING),
)


@pytest.mark.parametrize("mutation", [pytest.param(mutation, id=mutation.name) for mutation in _MUTATIONS])
def test_edited_script_breaks_the_protocol(mutation: Mutation) -> None:
    # One applies the changes of a service itself, the other one those that others have made.
    names: tuple[Name, ...] = ("change", "changes") if mutation.script == "change" else (mutation.script,)
    edited: dict[Name, str] = {}
    for name in names:
        shipped = script(name).source
        assert shipped.count(mutation.text) == 1
        edited[name] = shipped.replace(mutation.text, mutation.edited)
        assert edited[name] != shipped
    model = Model(SCOPES[mutation.scope], scripts=Scripts(edited))
    assert search(model, frozenset({mutation.fault})).fault is mutation.fault


@pytest.mark.parametrize(
    ("rules", "scope", "fault"),
    [
        pytest.param(
            Rules(redraws=False), "R6-R13-update-delete-and-insert-elsewhere", Fault.STALE, id="R13"
        ),
        pytest.param(Rules(redraws=False), "R13-delete-and-insert", Fault.OLDER, id="R13-acknowledged"),
        pytest.param(Rules(logs_changes=False), "R4-crashing-updates", Fault.STALE, id="R4"),
        pytest.param(Rules(commits_first=False), "R4-crashing-updates", Fault.AHEAD, id="R3"),
        pytest.param(
            Rules(settles_other_rows=False), "cascading-updates", Fault.OLDER, id="cascading-update-unsettled"
        ),
        pytest.param(
            Rules(settles_other_rows=False), "cascading-delete", Fault.OLDER, id="cascading-delete-unsettled"
        ),
        pytest.param(
            Rules(settles_other_rows=False), "inserts-by-triggers", Fault.OLDER, id="inserted-row-unsettled"
        ),
        pytest.param(
            Rules(commits_first=False), "cascading-updates", Fault.AHEAD, id="other-row-settled-before-commit"
        ),
        pytest.param(Rules(commits_first=False), "own-updates", Fault.AHEAD, id="own-settled-before-commit"),
        pytest.param(
            Rules(settles_other_rows=False), "own-update-beside", Fault.OLDER, id="own-row-left-out"
        ),
        pytest.param(
            Rules(settles_other_rows=False), "own-delete", Fault.OLDER, id="own-deleted-row-left-out"
        ),
        pytest.param(
            Rules(forgets_unknown_ends=False), "own-updates", Fault.OLDER, id="own-unknown-end-not-forgotten"
        ),
        pytest.param(
            Rules(forgets_unknown_ends=False),
            "own-insert",
            Fault.OLDER,
            id="own-unknown-insert-not-forgotten",
        ),
        pytest.param(
            Rules(believes_known_ends_only=False), "own-updates", Fault.AHEAD, id="own-unknown-end-believed"
        ),
        pytest.param(
            Rules(stops_reading=False), "own-update-without-redis", Fault.OLDER, id="own-refused-writes-read"
        ),
        pytest.param(Rules(asks_once=False), "R3-unanswered-leases", Fault.STALE, id="R2-token-used-twice"),
        pytest.param(
            Rules(believes_answers_only=False), "R3-unanswered-leases", Fault.STALE, id="R1-unknown-lease"
        ),
        pytest.param(
            Rules(believes_answers_only=False),
            "R3-unanswered-leases-of-writes",
            Fault.STALE,
            id="R3-unknown-lease-of-a-write",
        ),
        pytest.param(Rules(waits=False), "R8-waiting-reads", Fault.OLDER, id="R8"),
        pytest.param(Rules(forgets=False), "R5-updates-elsewhere", Fault.STALE, id="R2-restored-cache"),
        pytest.param(Rules(stops_reading=False), "refused-writes", Fault.OLDER, id="refused-writes-read"),
        pytest.param(Rules(empties=False), "ahead", Fault.STALE, id="ahead-filled-with-the-row"),
    ],
)
def test_protocol_needs_each_of_its_other_rules(rules: Rules, scope: str, fault: Fault) -> None:
    assert search(Model(SCOPES[scope], rules), frozenset({fault})).fault is fault


def test_commit_without_acknowledgement_promises_nothing_to_later_reads() -> None:
    scope = replace(SCOPES["R1-R2-R10-loads-and-updates"], promised_at="commit")
    assert search(Model(scope)).fault is Fault.OLDER
