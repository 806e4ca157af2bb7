"""The scopes that the search explores; R1 to R13 are the races in the design's catalog.

R1 a slow load meets a newer write; R2 the same after an eviction or a flush; R3 a load between a write's
start and its commit; R4 a crash between commit and publication; R5 reordered and repeated events; R6 a late
update after a delete; R7 *absent* hides an insert; R8 a read joins a load that began before it; R10 a write
that bypasses the service; R11 two schemas at the same time; R13 versions that do not grow in commit order.
The last scopes have a reconciler, during normal operation and with a slot that is wrong from the start;
unreadable content; a Redis that refuses writes; reads that bring to the slot what they read past it; writes
of other rows that change this one too; and transactions of a user's own.
"""

from __future__ import annotations

from typing import Final

from cachesync.slots.layout import ABSENT
from tests.unit.protocol.scripts import BLANK, LASTING_LEASE, NO_STRING
from tests.unit.protocol.world import OLD, Elsewhere, Own, Reader, Reconciler, Scope, Writer, value

_READ: Final = Reader()
_READ_OLD: Final = Reader(OLD)
_INSERT: Final = Writer("insert")
_UPDATE: Final = Writer("update")
_DELETE: Final = Writer("delete")
_CASCADING_UPDATE: Final = Writer("update", names_row=False)
_CASCADING_DELETE: Final = Writer("delete", names_row=False)
_INSERT_BY_A_TRIGGER: Final = Writer("insert", names_row=False)
_OWN_INSERT: Final = Own("insert")
_OWN_UPDATE: Final = Own("update")
_OWN_DELETE: Final = Own("delete")
_INSERT_ELSEWHERE: Final = Elsewhere("insert")
_UPDATE_ELSEWHERE: Final = Elsewhere("update")
_UPDATE_OLD_ELSEWHERE: Final = Elsewhere("update", OLD)
_DELETE_ELSEWHERE: Final = Elsewhere("delete")
_DELETE_AND_INSERT_ELSEWHERE: Final = Elsewhere("delete and insert")
_TRUNCATE_ELSEWHERE: Final = Elsewhere("truncate")

_RECONCILER: Final = Reconciler()

_SCOPES: Final = (
    Scope("R1-R2-R10-loads-and-updates", (_READ, _READ, _READ, _UPDATE, _UPDATE_ELSEWHERE)),
    Scope("R3-unanswered-leases", (_READ, _READ, _UPDATE, _UPDATE_ELSEWHERE), silent=True),
    Scope("R3-unanswered-leases-of-writes", (_UPDATE, _UPDATE, _UPDATE_ELSEWHERE), silent=True),
    Scope("R4-crashing-updates", (_READ, _READ, _UPDATE, _UPDATE)),
    Scope("R5-updates-elsewhere", (_READ, _READ) + (_UPDATE_ELSEWHERE,) * 3, slot=value(1)),
    Scope(
        "R6-R13-update-delete-and-insert-elsewhere",
        (_READ, _READ, _UPDATE_ELSEWHERE, _DELETE_ELSEWHERE, _INSERT_ELSEWHERE),
        slot=value(1),
    ),
    Scope("R7-inserts-over-absent", (_READ, _READ, _INSERT, _INSERT_ELSEWHERE), row=0, slot=ABSENT),
    # Nobody else can take or end the lease, so the commit alone is enough.
    Scope(
        "R7-insert-under-its-lease",
        (_READ, _READ, _INSERT),
        row=0,
        slot=ABSENT,
        lossy=False,
        promised_at="commit",
    ),
    Scope("R8-waiting-reads", (_READ, _READ, _READ, _READ, _UPDATE)),
    Scope("R10-truncate", (_READ, _READ, _TRUNCATE_ELSEWHERE, _INSERT, _UPDATE_ELSEWHERE)),
    Scope("R10-key-inserted-again", (_READ, _READ, _UPDATE, _DELETE_AND_INSERT_ELSEWHERE)),
    Scope("R11-two-schemas", (_READ, _READ_OLD, _UPDATE, _UPDATE_OLD_ELSEWHERE), slot=value(1, OLD)),
    Scope("R13-delete-and-insert", (_READ, _DELETE, _INSERT, _UPDATE_ELSEWHERE)),
    Scope(
        "R13-deletes-and-inserts-elsewhere",
        (_READ, _READ, _DELETE_ELSEWHERE, _DELETE_ELSEWHERE, _INSERT_ELSEWHERE, _INSERT_ELSEWHERE),
    ),
    Scope("R13-update-beside", (_READ, _READ, _UPDATE, _DELETE_ELSEWHERE, _INSERT_ELSEWHERE)),
    Scope(
        "R1-R6-invalidate",
        (_READ, _READ, _UPDATE, _DELETE_ELSEWHERE, _INSERT_ELSEWHERE),
        on_change="invalidate",
    ),
    Scope("reconciled-updates", (_READ, _UPDATE, _UPDATE_ELSEWHERE, _RECONCILER), slot=value(1)),
    Scope(
        "reconciled-deletes-and-inserts",
        (_READ, _DELETE_ELSEWHERE, _INSERT, _UPDATE_ELSEWHERE, _RECONCILER),
        slot=value(1),
    ),
    Scope("reconciled-absent", (_READ, _READ, _INSERT, _DELETE_ELSEWHERE, _RECONCILER), row=0, slot=ABSENT),
    Scope("reconciled-two-schemas", (_READ, _READ_OLD, _UPDATE, _RECONCILER), slot=value(1, OLD)),
    Scope("stale", (_READ, _UPDATE, _DELETE_ELSEWHERE, _RECONCILER), row=2, slot=value(1), wrong=True),
    Scope("ahead", (_READ, _UPDATE, _UPDATE_ELSEWHERE, _RECONCILER), slot=value(9), wrong=True),
    Scope("orphan", (_READ, _INSERT, _UPDATE_ELSEWHERE, _RECONCILER), row=0, slot=value(9), wrong=True),
    Scope(
        "garbage",
        (_READ, _UPDATE, _UPDATE_ELSEWHERE, _RECONCILER),
        slot=value(1),
        garbage=(BLANK, NO_STRING, b"V" + b"z" * 30, LASTING_LEASE),
    ),
    Scope(
        "garbage-over-a-missing-row",
        (_READ, _READ, _INSERT, _DELETE_ELSEWHERE),
        row=0,
        slot=ABSENT,
        garbage=(b"AA", LASTING_LEASE),
    ),
    Scope("refused-stores", (_READ, _READ, _UPDATE, _UPDATE_ELSEWHERE), slot=value(1), refuses="store"),
    Scope(
        "refused-stores-over-absent",
        (_READ, _READ, _INSERT, _DELETE_ELSEWHERE),
        row=0,
        slot=ABSENT,
        refuses="store",
    ),
    Scope("refused-writes", (_READ, _READ, _UPDATE, _UPDATE_ELSEWHERE), slot=value(1), refuses="all"),
    Scope("advances", (_READ, _READ, _UPDATE_ELSEWHERE, _UPDATE), slot=value(1), advances=True),
    Scope(
        "advances-after-deletes-and-inserts",
        (_READ, _READ, _DELETE_ELSEWHERE, _INSERT_ELSEWHERE, _UPDATE_ELSEWHERE),
        slot=value(1),
        advances=True,
    ),
    Scope(
        "advances-invalidate",
        (_READ, _READ, _UPDATE, _UPDATE_ELSEWHERE),
        slot=value(1),
        on_change="invalidate",
        advances=True,
    ),
    Scope("cascading-updates", (_READ, _READ, _CASCADING_UPDATE, _UPDATE_ELSEWHERE)),
    Scope(
        "cascading-delete",
        (_READ, _READ, _CASCADING_DELETE, _INSERT_ELSEWHERE),
        slot=value(1),
    ),
    Scope(
        "inserts-by-triggers",
        (_READ, _READ, _INSERT_BY_A_TRIGGER, _DELETE_ELSEWHERE),
        row=0,
        slot=ABSENT,
        refuses="store",
    ),
    Scope(
        "cascading-update-beside-an-advance",
        (_READ, _READ, _CASCADING_UPDATE, _UPDATE_ELSEWHERE),
        slot=value(1),
        advances=True,
    ),
    Scope("own-updates", (_READ, _READ, _OWN_UPDATE, _OWN_UPDATE), slot=value(1)),
    Scope("own-update-beside", (_READ, _READ, _OWN_UPDATE, _UPDATE_ELSEWHERE), slot=value(1)),
    Scope("own-delete", (_READ, _READ, _OWN_DELETE, _INSERT_ELSEWHERE), slot=value(1)),
    Scope(
        "own-insert",
        (_READ, _READ, _OWN_INSERT, _DELETE_ELSEWHERE),
        row=0,
        slot=ABSENT,
        refuses="store",
    ),
    Scope(
        "own-update-beside-an-advance",
        (_READ, _READ, _OWN_UPDATE, _UPDATE_ELSEWHERE),
        slot=value(1),
        advances=True,
    ),
    Scope(
        "own-update-without-redis",
        (_READ, _READ, _OWN_UPDATE, _UPDATE_ELSEWHERE),
        slot=value(1),
        refuses="all",
    ),
    Scope(
        "own-update-of-an-invalidated-row",
        (_READ, _READ, _OWN_UPDATE, _UPDATE_ELSEWHERE),
        slot=value(1),
        on_change="invalidate",
    ),
    Scope("own-update-reconciled", (_READ, _OWN_UPDATE, _UPDATE_ELSEWHERE, _RECONCILER), slot=value(1)),
    Scope("false-absent", (_READ, _UPDATE, _DELETE_ELSEWHERE, _RECONCILER), slot=ABSENT, wrong=True),
)

SCOPES: Final = {scope.name: scope for scope in _SCOPES}
