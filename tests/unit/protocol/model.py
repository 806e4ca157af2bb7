"""One row, its slot in one service, and everything that can change either, as states and steps.

The model leaves out, without losing any behavior:

- crashes: a process that takes no further step has crashed. The search visits every state in which any of the
  processes have stopped, so the conditions for a system at rest are checked in every state;
- the row locks of updates and deletes: they draw their version under the lock, so drawing and committing are
  one step. An insert has no row to lock and draws earlier, so it has two steps;
- lost events: the change log keeps an event until it is delivered, however late;
- repeated events: an event can be delivered any number of times before its last delivery;
- commands executed after their timeout: they are slow commands whose reply is ignored. Only the lease is
  modeled as such, because what its caller does next depends on the reply;
- the acknowledgement as a separate step: an earlier promise is harder to keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from cachesync.change import Row
from cachesync.reconcile.drift import Kind, drift_of, repair_of
from cachesync.slots.layout import ABSENT, EMPTY, encode_version
from tests.unit.protocol.faults import NOTHING, Fault
from tests.unit.protocol.scripts import Scripts
from tests.unit.protocol.world import (
    Elsewhere,
    Event,
    Local,
    Process,
    Reader,
    Reconciler,
    Rules,
    Scope,
    State,
    Writer,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.protocol.scripts import Effect

_TTL_MS: Final = b"60000"
_LEASE_MS: Final = b"2000"
_VERSION: Final = slice(1, 20)
_FINGERPRINT: Final = slice(20, 28)
_TOKEN: Final = slice(20, None)
_TOKENS: Final = (b"token-0", b"token-1", b"token-2", b"token-3", b"token-4", b"token-5")
_NO_TOKEN: Final = b""


class Step(NamedTuple):
    """What happens, the resulting state, and the violations of the protocol, if any."""

    what: str
    state: State
    faults: frozenset[Fault] = NOTHING


@dataclass(frozen=True)
class Model:
    """The possible steps in a scope."""

    scope: Scope
    rules: Rules = field(default_factory=Rules)
    scripts: Scripts = field(default_factory=Scripts)

    @cached_property
    def _readers(self) -> tuple[int, ...]:
        return tuple(
            index for index, process in enumerate(self.scope.processes) if isinstance(process, Reader)
        )

    @cached_property
    def _reconcilers(self) -> tuple[int, ...]:
        return tuple(
            index for index, process in enumerate(self.scope.processes) if isinstance(process, Reconciler)
        )

    @cached_property
    def _alike(self) -> list[list[int]]:
        groups: dict[Process, list[int]] = {}
        for index, process in enumerate(self.scope.processes):
            groups.setdefault(process, []).append(index)
        return [indexes for indexes in groups.values() if len(indexes) > 1]

    def first(self) -> State:
        """Return the initial state."""
        row = self.scope.row
        return State(row, row, 0, 0, self.scope.slot, (), (Local("start"),) * len(self.scope.processes))

    def representative(self, state: State) -> State:
        """Return the representative of all states that differ only by swapped identical processes."""
        processes, slot = state.processes, state.slot
        holder = slot[_TOKEN] if slot[:1] == b"L" else None
        for alike in self._alike:
            order = sorted(alike, key=lambda index: (state.processes[index], _token(index) == holder))
            if order == alike:
                continue
            sorted_processes = list(processes)
            for index, other in zip(alike, order, strict=True):
                sorted_processes[index] = state.processes[other]
                if _token(other) == holder:
                    slot = slot[: _TOKEN.start] + _token(index)
            processes = tuple(sorted_processes)
        # A promise concerns only reads that have not started yet.
        unstarted = state.promised and any(processes[index].at == "start" for index in self._readers)
        return state._replace(processes=processes, slot=slot, promised=state.promised if unstarted else 0)

    def faults(self, state: State) -> frozenset[Fault]:
        """Return the violations in a state, even if nothing else happens."""
        if self.scope.wrong and any(state.processes[index].at != "done" for index in self._reconcilers):
            return NOTHING
        version = int(state.slot[_VERSION]) if state.slot[:1] == b"V" else 0
        if version > max(state.row, state.deleted):
            return frozenset({Fault.AHEAD})
        if state.events:
            return NOTHING
        if version and version != state.row:
            return frozenset({Fault.STALE if state.row else Fault.ORPHAN})
        if state.slot == ABSENT and state.row:
            return frozenset({Fault.FALSE_ABSENT})
        return NOTHING

    def steps(self, state: State) -> Iterator[Step]:
        """Yield everything that can happen next."""
        if self.scope.lossy and state.slot:
            yield Step("the slot is lost", state._replace(slot=EMPTY))
        if not self.rules.forgets:
            yield Step("the slot is as it was at first", state._replace(slot=self.scope.slot))
        for event in state.events:
            yield from self._deliver(state, event)
        for index, (process, local) in enumerate(zip(self.scope.processes, state.processes, strict=True)):
            match process:
                case Elsewhere():
                    yield from self._write_elsewhere(state, index, process, local)
                case Reader():
                    yield from self._read(state, index, process, local)
                case Writer():
                    yield from self._write(state, index, process, local)
                case Reconciler():
                    yield from self._reconcile(state, index, process, local)
            if local.unanswered and isinstance(process, Reader | Writer):
                slot, _, faults = self._lease(state, index, process)
                after = _after(state, index, local._replace(unanswered=False), slot)
                yield Step(f"{index}: its lease is carried out late", after, faults)

    def _deliver(self, state: State, event: Event) -> Iterator[Step]:
        slot, _, faults = self._change(state, event, _NO_TOKEN)
        what = f"{event.operation} {event.version} is delivered"
        rest = tuple(other for other in state.events if other is not event)
        yield Step(f"{what} for the last time", state._replace(slot=slot, events=rest), faults)
        if slot != state.slot or faults:
            yield Step(what, state._replace(slot=slot), faults)

    def _read(self, state: State, index: int, process: Reader, local: Local) -> Iterator[Step]:
        must_see = local.number
        match local.at:
            case "start":
                yield self._meet(state, index, process, state.promised, state.slot)
            case "wait":
                yield from self._wait(state, index, process, must_see)
            case "lease":
                yield from self._miss(state, index, process, local)
            case "bypass":
                yield _answer(state, index, must_see, state.row, local._replace(at="done", number=0))
            case "load":
                yield _answer(state, index, must_see, state.row, local._replace(at="fill", number=state.row))
                yield Step(
                    f"{index}: cannot read the database",
                    _after(state, index, local._replace(at="release", number=0)),
                )
            case "fill":
                yield self._fill(state, index, process, local)
            case "release":
                yield self._release(state, index, local)

    def _meet(self, state: State, index: int, process: Reader, must_see: int, slot: bytes) -> Step:
        """Return the step of a reader that gets this slot from Redis."""
        if slot == ABSENT:
            return _answer(state, index, must_see, 0, Local("done"))
        if slot[:1] == b"V" and slot[_FINGERPRINT] == process.fingerprint:
            return _answer(state, index, must_see, int(slot[_VERSION]), Local("done"))
        if slot[:1] == b"L":
            return Step(f"{index}: meets a lease", _after(state, index, Local("wait", must_see)))
        return Step(f"{index}: misses", _after(state, index, Local("lease", must_see)))

    def _wait(self, state: State, index: int, process: Reader, must_see: int) -> Iterator[Step]:
        if state.slot[:1] != b"L":
            yield self._meet(state, index, process, must_see, state.slot)
        yield _answer(state, index, must_see, state.row, Local("done"))
        if not self.rules.waits:
            for reader in self._readers:
                beside = state.processes[reader]
                if beside.at == "fill":
                    yield _answer(state, index, must_see, beside.number, Local("done"))

    def _miss(self, state: State, index: int, process: Reader, local: Local) -> Iterator[Step]:
        slot, met, faults = self._lease(state, index, process)
        if isinstance(met, bytes):
            step = self._meet(state, index, process, local.number, met)
            unserved = step.state.processes[index].at == "lease"
            yield step._replace(faults=frozenset({Fault.UNSERVED})) if unserved else step
        else:
            yield Step(f"{index}: leases", _after(state, index, local._replace(at="load"), slot), faults)
        if self.scope.silent:
            unanswered = local._replace(at="bypass", unanswered=True)
            if not self.rules.asks_once:
                unanswered = unanswered._replace(at="lease")
            elif not self.rules.believes_answers_only:
                unanswered = unanswered._replace(at="load")
            yield Step(f"{index}: no longer waits for its lease", _after(state, index, unanswered))

    def _fill(self, state: State, index: int, process: Reader, local: Local) -> Step:
        content = value(local.number, process.fingerprint) if local.number else ABSENT
        slot, filled, faults = self.scripts.run("fill", state.slot, _token(index), content, _TTL_MS)
        if _holds(state, index) and local.number == state.row != 0 and not filled:
            faults |= {Fault.REFUSED}
        after = _after(state, index, local._replace(at="done", number=0), slot)
        return Step(f"{index}: fills with {local.number}", after, faults)

    def _write(self, state: State, index: int, process: Writer, local: Local) -> Iterator[Step]:
        match local.at:
            case "start":
                draws = process.write == "insert" or not self.rules.commits_first
                begun = Local("draw" if draws else "commit")
                slot, answer, faults = self._lease(state, index, process)
                after = _after(state, index, begun._replace(leased=answer is None), slot)
                yield Step(f"{index}: asks for the lease", after, faults)
                if self.scope.silent:
                    leased = not self.rules.believes_answers_only
                    after = _after(state, index, begun._replace(leased=leased, unanswered=True))
                    yield Step(f"{index}: no longer waits for its lease", after)
            case "draw":
                drawn = state.drawn + 1
                after = _after(state, index, local._replace(at="commit", number=drawn))._replace(drawn=drawn)
                if not self.rules.commits_first:
                    slot = self._change(state, _event(process, drawn), _token(index)).slot
                    after = after._replace(slot=slot)
                yield Step(f"{index}: draws {drawn}", after)
            case "commit":
                given_up = local._replace(at="release" if local.leased else "done", number=0, leased=False)
                yield Step(f"{index}: fails to {process.write}", _after(state, index, given_up))
                committed = self._commit(state, process, local.number)
                if committed is not None:
                    version = committed.row or committed.deleted
                    after = _after(committed, index, local._replace(at="change", number=version))
                    if self.scope.promised_at == "commit":
                        after = after._replace(promised=version)
                    yield Step(f"{index}: commits {process.write} {version}", after)
            case "change":
                yield self._change_own(state, index, process, local)
            case "release":
                yield self._release(state, index, local)

    def _change_own(self, state: State, index: int, process: Writer, local: Local) -> Step:
        event = _event(process, local.number)
        slot, answer, faults = self._change(state, event, _token(index) if local.leased else _NO_TOKEN)
        fills = event.operation == "upsert" and self.scope.on_change == "refresh"
        if (
            fills
            and _holds(state, index)
            and local.leased
            and local.number == state.row
            and answer != b"filled"
        ):
            faults |= {Fault.REFUSED}
        after = _after(state, index, local._replace(at="done", number=0, leased=False), slot)
        after = after._replace(promised=max(state.promised, local.number))
        if not self.rules.logs_changes:
            after = after._replace(events=(*state.events, event))
        return Step(f"{index}: changes the slot to {local.number}, and acknowledges", after, faults)

    def _write_elsewhere(self, state: State, index: int, process: Elsewhere, local: Local) -> Iterator[Step]:
        match local.at:
            case "start" if process.write == "insert":
                drawn = state.drawn + 1
                after = _after(state, index, Local("commit", drawn))._replace(drawn=drawn)
                yield Step(f"{index}: draws {drawn}", after)
            case "start" | "commit":
                committed = self._commit(state, process, local.number)
                if committed is not None:
                    what = f"{index}: commits {process.write} {committed.row or committed.deleted}"
                    yield Step(what, _after(committed, index, Local("done")))

    def _reconcile(self, state: State, index: int, process: Reconciler, local: Local) -> Iterator[Step]:
        match local.at:
            case "start":
                looks = state.slot[:1] not in {b"", b"L"}
                after = Local("compare", seen=state.slot) if looks else Local("done")
                yield Step(f"{index}: reads the slot", _after(state, index, after))
            case "compare":
                wrong = self._drift(process, local, state.row)
                after = Local("done") if wrong is None else local._replace(at="repair", number=state.row)
                yield Step(f"{index}: reads {state.row}, and finds {wrong}", _after(state, index, after))
            case "repair":
                kind = self._drift(process, local, local.number)
                if kind is Kind.AHEAD and not self.rules.empties:
                    kind = Kind.STALE
                assert kind is not None
                content = repair_of(kind, _row(process, local.number), self.scope.on_change)
                slot, _, faults = self.scripts.run("repair", state.slot, local.seen, content, _TTL_MS)
                yield Step(f"{index}: repairs", _after(state, index, Local("done"), slot), faults)

    @staticmethod
    def _drift(process: Reconciler, local: Local, version: int) -> Kind | None:
        return drift_of(local.seen, _row(process, version), deep=True)

    def _commit(self, state: State, process: Writer | Elsewhere, drawn: int) -> State | None:
        """Return the state after a commit, or None if there is nothing to commit.

        `drawn` is the version that was drawn before, or 0.
        """
        write = process.write
        if write != "truncate" and (write == "insert") == (state.row != 0):
            return None
        overtaken = self.rules.redraws and drawn < state.deleted
        version = state.drawn + 1 if drawn == 0 or overtaken else drawn
        events = [_event(process, version)]
        row, deleted = (version, state.deleted) if events[0].operation == "upsert" else (0, version)
        if write == "delete and insert":
            row = version + 1
            events.append(Event(row, "upsert", process.fingerprint))
        logged = events if self.rules.logs_changes or isinstance(process, Elsewhere) else ()
        return state._replace(
            row=row,
            drawn=max(state.drawn, row, deleted),
            deleted=deleted,
            events=tuple(sorted((*state.events, *logged))),
        )

    def _lease(self, state: State, index: int, process: Reader | Writer) -> Effect:
        purpose = b"read" if isinstance(process, Reader) else b"write"
        return self.scripts.run("lease", state.slot, _token(index), _LEASE_MS, process.fingerprint, purpose)

    def _change(self, state: State, event: Event, token: bytes) -> Effect:
        content = EMPTY
        if event.operation == "upsert" and self.scope.on_change == "refresh":
            content = value(event.version, event.fingerprint)
        return self.scripts.run("change", state.slot, encode_version(event.version), content, _TTL_MS, token)

    def _release(self, state: State, index: int, local: Local) -> Step:
        slot, _, faults = self.scripts.run("release", state.slot, _token(index))
        return Step(f"{index}: releases", _after(state, index, local._replace(at="done"), slot), faults)


def _row(process: Reconciler, version: int) -> Row | None:
    return Row("1", version, process.fingerprint, b"{}") if version else None


def _token(index: int) -> bytes:
    return _TOKENS[index]


def _holds(state: State, index: int) -> bool:
    return state.slot[:1] == b"L" and state.slot[_TOKEN] == _token(index)


def _event(process: Writer | Elsewhere, version: int) -> Event:
    match process.write:
        case "insert" | "update":
            return Event(version, "upsert", process.fingerprint)
        case "delete" | "delete and insert":
            return Event(version, "delete", process.fingerprint)
        case "truncate":
            return Event(version, "truncate", process.fingerprint)


def _after(state: State, index: int, local: Local, slot: bytes | None = None) -> State:
    """Return the state after a process has taken a step."""
    processes = (*state.processes[:index], local, *state.processes[index + 1 :])
    return state._replace(processes=processes, slot=state.slot if slot is None else slot)


def _answer(state: State, index: int, must_see: int, version: int, after: Local) -> Step:
    """Return the step of a read that returns the row at a version, or no row if the version is 0."""
    older = version < must_see if version else state.deleted < must_see
    faults = frozenset({Fault.OLDER}) if older else NOTHING
    return Step(f"{index}: reads {version}", _after(state, index, after), faults)
