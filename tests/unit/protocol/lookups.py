"""The slot of one value in a unique lookup, and two rows that have the value or not, as states and steps.

What `model.py` leaves out is left out here, too. The slots of the rows are not modeled again: a read through
such a slot returns the row as it was at any moment since its last write that this service has acknowledged,
which is what `model.py` shows. Everything that happens to the slot of the value is a shipped script.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from cachesync.slots.layout import ABSENT, EMPTIES_ABSENT, EMPTY, is_lease
from cachesync.value import HIGHEST_VERSION, UP_TO_PAYLOAD, VERSION, encode_head, encode_value, is_value
from tests.unit.protocol.faults import NOTHING, Fault
from tests.unit.protocol.scripts import Scripts
from tests.unit.protocol.world import NEW

if TYPE_CHECKING:
    from collections.abc import Iterator

_TTL_MS: Final = b"60000"
_LEASE_MS: Final = b"2000"
_TOKENS: Final = (b"token-0", b"token-1", b"token-2", b"token-3", b"token-4")
_ROUNDS: Final = 2
NOBODY: Final = 0


class Find(NamedTuple):
    """A read by the value."""


class Write(NamedTuple):
    """A write of a row.

    Attributes:
        row: the row, 1 or 2.
        has: whether the row has the value afterwards.
        inserts: whether the row draws its version before it waits for its uniqueness check.
        ours: whether this service writes, and promises the write to later reads by its acknowledgement.
        known: whether it is known, at the acknowledgement and in the event, which value the row has.
        payload: whether the event has the row.
    """

    row: int
    has: bool
    inserts: bool = False
    ours: bool = False
    known: bool = True
    payload: bool = True


Process = Find | Write


class Seen(NamedTuple):
    """A row at a moment: its version, and whether it has the value."""

    version: int
    has: bool


class Local(NamedTuple):
    """The state of a process.

    Attributes:
        at: its next action.
        number: the version that a write drew, or the row that a read has found.
        version: the version of that row.
        said: the content of the slot in which a read has believed, or which a row has refuted.
        must_see: the position in the holders from which on the answer must be true.
        rounds: how many times a read has believed the slot.
    """

    at: Literal["start", "row", "lease", "load", "fill", "bypass", "advance", "commit", "settle", "done"]
    number: int = 0
    version: int = 0
    said: bytes = EMPTY
    must_see: int = 0
    rounds: int = 0


class Event(NamedTuple):
    """A change on its way to the cache."""

    version: int
    row: int
    has: bool
    known: bool
    payload: bool


class State(NamedTuple):
    """The state of the world at one moment.

    Attributes:
        rows: what each of the two rows has been, the newest last.
        promised: for each row, the position in that from which on a read may return it.
        holders: the row that had the value after each commit, or `NOBODY`.
        must_see: the position in the holders of the last acknowledged write that gave the value to a row.
        drawn: the last version drawn from the sequence.
        slot: the content of the slot of the value.
        follows: whether the stream knows of the lookup.
        opened: whether the processes of this service know of the lookup.
        events: the committed changes before their last delivery.
        processes: the states of the processes.
    """

    rows: tuple[tuple[Seen, ...], tuple[Seen, ...]]
    promised: tuple[int, int]
    holders: tuple[int, ...]
    must_see: int
    drawn: int
    slot: bytes
    follows: bool
    opened: bool
    events: tuple[Event, ...]
    processes: tuple[Local, ...]


class Step(NamedTuple):
    """What happens, the resulting state, and the violations of the protocol, if any."""

    what: str
    state: State
    faults: frozenset[Fault] = NOTHING


@dataclass(frozen=True)
class Rules:
    """The rules for everything around the scripts. Each can be disabled to show why it is needed.

    Attributes:
        verifies: a read compares the row that the slot names with the value.
        settles: before it is acknowledged, a write changes the slot of the value that its row has.
        settles_unknown: if it does not know the values, it empties every *absent*.
        applies: an event changes the slot of the value that its row has.
        applies_without_payload: an event without the row does so, too.
        applies_unknown: an event that does not tell the values empties every *absent*.
        begins: a stream that begins to follow a lookup empties every *absent*.
        opens: a service that declares a lookup again empties every *absent*, before it reads any.
        compares: a read only replaces the very content that the row has refuted.
        empties_absent: what empties every *absent*.
    """

    verifies: bool = True
    settles: bool = True
    settles_unknown: bool = True
    applies: bool = True
    applies_without_payload: bool = True
    applies_unknown: bool = True
    begins: bool = True
    opens: bool = True
    compares: bool = True
    empties_absent: bytes = EMPTIES_ABSENT


@dataclass(frozen=True)
class Scope:
    """A set of processes and an initial state for the search to explore.

    Attributes:
        name: its name.
        processes: the processes.
        holder: the row that has the value initially, or `NOBODY`.
        slot: the initial content of the slot.
        follows: whether the stream knows of the lookup from the beginning.
        opened: whether this service knows of it from the beginning.
        advances: whether reads that went past the cache bring what they read to the slot.
        refreshes: whether changes replace the content of the slot; else they empty it.
    """

    name: str
    processes: tuple[Process, ...]
    holder: int = NOBODY
    slot: bytes = EMPTY
    follows: bool = True
    opened: bool = True
    advances: bool = False
    refreshes: bool = True


def names(row: int, version: int = 1) -> bytes:
    """Return the content of the slot that says that a row has the value."""
    return encode_value(version, NEW, b"%d" % row)


@dataclass(frozen=True)
class Model:
    """The possible steps in a scope."""

    scope: Scope
    rules: Rules = field(default_factory=Rules)
    scripts: Scripts = field(default_factory=Scripts)

    def first(self) -> State:
        """Return the initial state."""
        holder = self.scope.holder
        return State(
            rows=((Seen(1, holder == 1),), (Seen(1, holder == 2),)),
            promised=(0, 0),
            holders=(holder,),
            must_see=0,
            drawn=1,
            slot=self.scope.slot,
            follows=self.scope.follows,
            opened=self.scope.opened,
            events=(),
            processes=tuple(Local("start") for _ in self.scope.processes),
        )

    def representative(self, state: State) -> State:
        """Return the representative of a state: what no read can return any more is forgotten."""
        started = [
            local.must_see
            for process, local in zip(self.scope.processes, state.processes, strict=True)
            if isinstance(process, Find) and local.at not in {"start", "done"}
        ]
        if any(
            isinstance(process, Find) and local.at == "start"
            for process, local in zip(self.scope.processes, state.processes, strict=True)
        ):
            started.append(state.must_see)
        first = min(started, default=len(state.holders) - 1)
        if not first:
            return state
        return state._replace(
            holders=state.holders[first:],
            must_see=max(0, state.must_see - first),
            processes=tuple(
                local._replace(must_see=max(0, local.must_see - first)) for local in state.processes
            ),
        )

    def faults(self, state: State) -> frozenset[Fault]:
        """Return the violations in a state, even if nothing else happens."""
        at_rest = state.follows and not state.events
        if at_rest and state.slot == ABSENT and state.holders[-1] != NOBODY:
            return frozenset({Fault.FALSE_ABSENT})
        return NOTHING

    def steps(self, state: State) -> Iterator[Step]:
        """Yield everything that can happen next."""
        if state.slot:
            yield Step("the slot is lost", state._replace(slot=EMPTY))
        if not state.follows:
            slot = state.slot
            if self.rules.begins:
                slot = self._applied(slot, self.rules.empties_absent)
            yield Step("the stream begins to follow the lookup", state._replace(follows=True, slot=slot))
        if not state.opened and all(local.at in {"start", "done"} for local in state.processes):
            slot = state.slot
            if self.rules.opens:
                slot = self._applied(slot, self.rules.empties_absent)
            yield Step("the service opens with the lookup", state._replace(opened=True, slot=slot))
        for event in state.events:
            yield from self._deliver(state, event)
        for index, (process, local) in enumerate(zip(self.scope.processes, state.processes, strict=True)):
            if isinstance(process, Find):
                if state.opened:
                    yield from self._find(state, index, local)
            else:
                yield from self._write(state, index, process, local)

    def _deliver(self, state: State, event: Event) -> Iterator[Step]:
        slot = state.slot
        content = self._content_of(event)
        if state.follows and content is not None:
            slot = self._applied(slot, content)
        what = f"{event} is delivered"
        yield Step(f"{what}, and again later", state._replace(slot=slot))
        rest = tuple(one for one in state.events if one != event)
        # A batch applies only the newest change of a row, and the relay closes the older ones.
        newer = tuple(one for one in rest if one.row != event.row or one.version > event.version)
        for left in {rest, newer}:
            yield Step(f"{what} for the last time", state._replace(slot=slot, events=left))

    def _content_of(self, event: Event) -> bytes | None:
        """Return what an event does to the slot, as the script `changes` expects it; None for nothing."""
        rules = self.rules
        if not event.known:
            return rules.empties_absent if rules.applies_unknown else None
        if not event.has or not rules.applies:
            return None
        if event.payload and self.scope.refreshes:
            return names(event.row, event.version)
        return encode_head(event.version) if event.payload or rules.applies_without_payload else None

    def _applied(self, slot: bytes, content: bytes) -> bytes:
        return self.scripts.run("changes", slot, _TTL_MS, content).slot

    def _find(self, state: State, index: int, local: Local) -> Iterator[Step]:
        match local.at:
            case "start":
                begun = Local("start", must_see=state.must_see)
                yield self._meet(state, index, begun, state.slot)
                yield self._bypass(state, index)
            case "row":
                yield from self._read_row(state, index, local)
            case "lease":
                yield from self._lease(state, index, local)
                yield self._bypass(state, index)
            case "load":
                holder = state.holders[-1]
                version = state.rows[holder - 1][-1].version if holder else 0
                loaded = _after(state, index, local._replace(at="fill", number=holder, version=version))
                yield Step(f"{index}: loads {holder}", loaded)
            case "fill":
                content = names(local.number, local.version) if local.number else ABSENT
                effect = self.scripts.run("fill", state.slot, _TOKENS[index], content, _TTL_MS)
                after = _after(state, index, Local("done"), effect.slot)
                faults = effect.faults | self._of_answer(state, local, local.number)
                yield Step(f"{index}: fills with {local.number}, and returns it", after, faults)
            case "advance":
                if local.number and self.scope.refreshes:
                    change = names(local.number, local.version)
                else:
                    change = encode_head(local.version) if local.number else b"V" + HIGHEST_VERSION
                after = _after(state, index, Local("done"), self._applied(state.slot, change))
                yield Step(f"{index}: advances the slot", after)

    def _meet(self, state: State, index: int, local: Local, slot: bytes) -> Step:
        if slot == ABSENT:
            faults = self._of_answer(state, local, NOBODY)
            return Step(f"{index}: finds nobody", _after(state, index, Local("done")), faults)
        if is_value(slot) and slot != local.said and local.rounds < _ROUNDS:
            after = local._replace(at="row", said=slot, rounds=local.rounds + 1)
            return Step(f"{index}: believes {slot!r}", _after(state, index, after))
        return Step(f"{index}: misses", _after(state, index, local._replace(at="lease")))

    def _read_row(self, state: State, index: int, local: Local) -> Iterator[Step]:
        row = int(local.said[UP_TO_PAYLOAD:])
        history = state.rows[row - 1]
        for position in range(state.promised[row - 1], len(history)):
            if history[position].has or not self.rules.verifies:
                faults = NOTHING if history[position].has else frozenset({Fault.STALE})
                yield Step(f"{index}: returns {row}", _after(state, index, Local("done")), faults)
            else:
                after = local._replace(at="lease")
                yield Step(f"{index}: row {row} has another value", _after(state, index, after))

    def _lease(self, state: State, index: int, local: Local) -> Iterator[Step]:
        refuted = local.said
        if refuted and not self.rules.compares and is_value(state.slot):
            refuted = state.slot
        effect = self.scripts.run("lease", state.slot, _TOKENS[index], _LEASE_MS, NEW, b"read", refuted)
        faults = effect.faults
        if is_value(state.slot) and state.slot != local.said and effect.answer is None:
            faults |= {Fault.TAKEN}
        if effect.answer is None:
            leased = _after(state, index, local._replace(at="load"), effect.slot)
            yield Step(f"{index}: leases", leased, faults)
        elif isinstance(effect.answer, bytes) and not is_lease(effect.answer):
            yield self._meet(state, index, local, effect.answer)

    def _bypass(self, state: State, index: int) -> Step:
        holder = state.holders[-1]
        version = state.rows[holder - 1][-1].version if holder else 0
        at: Literal["advance", "done"] = "advance" if self.scope.advances else "done"
        after = Local(at, holder, version)
        return Step(f"{index}: reads {holder} past the cache", _after(state, index, after))

    @staticmethod
    def _of_answer(state: State, local: Local, row: int) -> frozenset[Fault]:
        """Return whether no row had the value at any moment since which the answer must be true."""
        possible = row != NOBODY or NOBODY in state.holders[local.must_see :]
        return NOTHING if possible else frozenset({Fault.OLDER})

    def _write(self, state: State, index: int, process: Write, local: Local) -> Iterator[Step]:
        match local.at:
            case "start" if process.inserts:
                drawn = state.drawn + 1
                after = _after(state, index, Local("commit", drawn))._replace(drawn=drawn)
                yield Step(f"{index}: draws {drawn}", after)
            case "start" | "commit":
                yield from self._commit(state, index, process, local)
            case "settle":
                yield self._settle(state, index, process, local)

    @staticmethod
    def _commit(state: State, index: int, process: Write, local: Local) -> Iterator[Step]:
        holder, row = state.holders[-1], process.row
        newest = state.rows[row - 1][-1].version
        if process.has and holder not in {NOBODY, row}:
            return
        version = local.number or state.drawn + 1
        if version < newest:
            # Of one row, versions are in the order of the commits.
            return
        histories = list(state.rows)
        histories[row - 1] = (*histories[row - 1], Seen(version, process.has))
        now = row if process.has else NOBODY if holder == row else holder
        after = Local("settle", version, must_see=len(state.holders)) if process.ours else Local("done")
        event = Event(version, row, process.has, process.known, process.payload)
        yield Step(
            f"{index}: commits {event}",
            _after(state, index, after)._replace(
                rows=(histories[0], histories[1]),
                holders=(*state.holders, now),
                drawn=max(state.drawn, version),
                events=tuple(sorted((*state.events, event))),
            ),
        )

    def _settle(self, state: State, index: int, process: Write, local: Local) -> Step:
        slot = state.slot
        content = EMPTY
        version = local.number
        if not state.opened:
            pass
        elif process.known and process.has and self.rules.settles:
            content = names(process.row, version) if self.scope.refreshes else encode_head(version)
        elif not process.known and self.rules.settles_unknown:
            content = self.rules.empties_absent
        if content:
            emptied = EMPTY if len(content) == VERSION.stop else content
            slot = self.scripts.run("change", slot, content[VERSION], emptied, _TTL_MS, b"").slot
        promised = list(state.promised)
        history = state.rows[process.row - 1]
        position = next(at for at, seen in enumerate(history) if seen.version == version)
        promised[process.row - 1] = max(promised[process.row - 1], position)
        must_see = max(state.must_see, local.must_see) if process.has else state.must_see
        after = _after(state, index, Local("done"), slot)
        return Step(
            f"{index}: settles {version}, and acknowledges",
            after._replace(promised=(promised[0], promised[1]), must_see=must_see),
        )


def _after(state: State, index: int, local: Local, slot: bytes | None = None) -> State:
    """Return the state after a process has taken a step."""
    processes = (*state.processes[:index], local, *state.processes[index + 1 :])
    return state._replace(processes=processes, slot=state.slot if slot is None else slot)
