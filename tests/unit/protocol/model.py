"""One row, its slot in one service, and everything that can change either, as states and steps.

The model leaves out, without losing any behavior:

- crashes: a process that takes no further step has crashed. The search visits every state in which any of the
  processes have stopped, so the conditions for a system at rest are checked in every state;
- the row locks of updates and deletes: they draw their version under the lock, so drawing and committing are
  one step. An insert has no row to lock and draws earlier, so it has two steps. A transaction of a user's own
  knows its version before it commits, and holds the lock in between;
- lost events: the change log keeps an event until it is delivered, however late;
- repeated events: an event can be delivered any number of times before its last delivery;
- commands executed after their timeout: they are slow commands whose reply is ignored. Only the lease is
  modeled as such, because what its caller does next depends on the reply;
- the acknowledgement as a separate step: an earlier promise is harder to keep;
- the other row of a write that changes several: each script changes one slot, so that the steps at the slots
  of different rows do not affect one another. To this row, such a write is one that has no lease of its slot,
  and so is a transaction of a user's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from cachesync.change import Row
from cachesync.entity import Entity
from cachesync.reconcile.drift import Kind, drift_of, repair_of
from cachesync.slots.layout import ABSENT, EMPTY, advance_of, decode_value, is_lease, is_readable
from cachesync.value import HIGHEST_VERSION, encode_version, is_value, version_of
from tests.unit.protocol.faults import NOTHING, Fault
from tests.unit.protocol.scripts import BLANK, LASTING_LEASE, NO_STRING, Effect, RefusedError, Scripts
from tests.unit.protocol.world import (
    Elsewhere,
    Event,
    Local,
    Own,
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
    from collections.abc import Iterator, Mapping
    from datetime import timedelta

    from tests.unit.protocol.scripts import Name

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
    def _own(self) -> tuple[int, ...]:
        return tuple(index for index, process in enumerate(self.scope.processes) if isinstance(process, Own))

    @cached_property
    def _alike(self) -> list[list[int]]:
        groups: dict[Process, list[int]] = {}
        for index, process in enumerate(self.scope.processes):
            groups.setdefault(process, []).append(index)
        return [indexes for indexes in groups.values() if len(indexes) > 1]

    def first(self) -> State:
        """Return the initial state."""
        row = self.scope.row
        started = (Local("start"),) * len(self.scope.processes)
        return State(row, row, 0, 0, self.scope.slot, refusing=False, events=(), processes=started)

    def representative(self, state: State) -> State:
        """Return the representative of all states that differ only by identical processes or by numbers.

        Of the versions, only the order matters.
        """
        processes, slot = state.processes, state.slot
        holder = slot[_TOKEN] if slot[:1] == b"L" else None
        for alike in self._alike:
            if all(processes[index] < processes[other] for index, other in pairwise(alike)):
                continue
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
        promised = state.promised if unstarted else 0
        if processes is not state.processes or promised != state.promised:
            state = state._replace(processes=processes, slot=slot, promised=promised)
        # The first content of the slot, which returns without this rule, has a fixed number.
        return _renumbered(state) if self.rules.forgets and not self.scope.wrong else state

    def faults(self, state: State) -> frozenset[Fault]:
        """Return the violations in a state, even if nothing else happens."""
        if self.scope.wrong and any(state.processes[index].at != "done" for index in self._reconcilers):
            return NOTHING
        version = version_of(state.slot) if is_value(state.slot) else 0
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
        yield from self._disturb(state)
        for event in () if state.refusing else state.events:
            yield from self._deliver(state, event)
        for index, (process, local) in enumerate(zip(self.scope.processes, state.processes, strict=True)):
            match process:
                case Elsewhere():
                    yield from self._write_elsewhere(state, index, process, local)
                case Reader():
                    yield from self._read(state, index, process, local)
                case Writer():
                    yield from self._write(state, index, process, local)
                case Own():
                    yield from self._follow(state, index, process, local)
                case Reconciler():
                    yield from self._reconcile(state, index, process, local)
            if local.unanswered and isinstance(process, Reader | Writer):
                for but, (slot, _, faults) in self._effects("lease", state, *self._lease(index, process)):
                    after = _after(state, index, local._replace(unanswered=False), slot)
                    yield Step(f"{index}: its lease is carried out late{but}", after, faults)

    def _disturb(self, state: State) -> Iterator[Step]:
        """Yield what can happen to the slot and its Redis at any moment."""
        if self.scope.lossy and state.slot:
            yield Step("the slot is lost", state._replace(slot=EMPTY))
        for garbage in self.scope.garbage:
            yield Step(f"another program writes {garbage!r}", state._replace(slot=garbage))
        if self.scope.refuses == "all":
            yield self._refuse(state)
        if not self.rules.forgets:
            yield Step("the slot is as it was at first", state._replace(slot=self.scope.slot))

    def _refuse(self, state: State) -> Step:
        if not state.refusing:
            return Step("Redis refuses all writes", state._replace(refusing=True))
        # What it refused is late now, until the events are delivered.
        return Step("Redis takes writes again", state._replace(refusing=False, promised=0))

    def _effects(self, name: Name, state: State, *arguments: bytes) -> Iterator[tuple[str, Effect]]:
        """Yield what a script can do to the slot, and how the steps differ."""
        if not state.refusing:
            yield "", self.scripts.run(name, state.slot, *arguments)
        if self.scope.refuses == "store":
            effect = self.scripts.run(name, state.slot, *arguments, refuses=True)
            if isinstance(effect.answer, RefusedError):
                yield ", but Redis refuses to store", effect
        if state.refusing:
            yield ", but Redis refuses", Effect(state.slot, RefusedError(), NOTHING)

    def _deliver(self, state: State, event: Event) -> Iterator[Step]:
        version, content, ttl_ms, _ = self._change(event, _NO_TOKEN)
        arguments = ttl_ms, content or b"V" + version
        for but, (slot, _, faults) in self._effects("changes", state, *arguments):
            what = f"{event.operation} {event.version} is delivered{but}"
            rest = tuple(other for other in state.events if other is not event)
            yield Step(f"{what} for the last time", state._replace(slot=slot, events=rest), faults)
            if slot != state.slot or faults:
                yield Step(what, state._replace(slot=slot), faults)

    def _read(self, state: State, index: int, process: Reader, local: Local) -> Iterator[Step]:
        must_see = local.number
        match local.at:
            case "start":
                yield from self._start(state, index, process)
            case "wait":
                yield from self._wait(state, index, process, must_see)
            case "lease":
                yield from self._miss(state, index, process, local)
            case "bypass":
                yield _answer(state, index, must_see, state.row, self._bypassed(state, local))
            case "advance":
                yield from self._advance(state, index, process, local)
            case "load":
                yield _answer(state, index, must_see, state.row, local._replace(at="fill", number=state.row))
                yield Step(
                    f"{index}: cannot read the database",
                    _after(state, index, local._replace(at="release", number=0)),
                )
            case "fill":
                yield from self._fill(state, index, process, local)
            case "release":
                yield from self._release(state, index, local)

    def _start(self, state: State, index: int, process: Reader) -> Iterator[Step]:
        bypassing = _after(state, index, Local("bypass", state.promised))
        if state.refusing and self.rules.stops_reading:
            yield Step(f"{index}: does not read the slot", bypassing)
        else:
            yield self._meet(state, index, process, state.promised, state.slot)
        if self.scope.advances:
            yield Step(f"{index}: Redis does not respond in time", bypassing)

    def _bypassed(self, state: State, local: Local) -> Local:
        """Return the state of a read after it has read the database past the cache."""
        if not self.scope.advances:
            return local._replace(at="done", number=0)
        return local._replace(at="advance", number=state.row or -state.deleted)

    def _advance(self, state: State, index: int, process: Reader, local: Local) -> Iterator[Step]:
        row = Row("1", local.number, process.fingerprint, b"{}") if local.number > 0 else None
        entity = Entity(
            name="row",
            table="rows",
            key="id",
            ttl=cast("timedelta", "1h"),
            absent_ttl=cast("timedelta", "1h"),
            path="/rows",
            on_change=self.scope.on_change,
        )
        change = advance_of(entity, "", row)
        for but, (slot, answer, faults) in self._effects(
            "advance", state, _TTL_MS, change.version, change.content
        ):
            after = _after(state, index, local._replace(at="done", number=0), slot)
            if answer == 1:
                # From now on, no hit may be older than what this read returned.
                after = after._replace(promised=max(state.promised, abs(local.number)))
            yield Step(f"{index}: advances the slot to {local.number}{but}", after, faults)

    def _meet(self, state: State, index: int, process: Reader, must_see: int, slot: bytes) -> Step:
        """Return the step of a reader that gets this slot from Redis."""
        if slot == ABSENT:
            return _answer(state, index, must_see, 0, Local("done"))
        row = decode_value(slot, "1", process.fingerprint)
        if row is not None:
            return _answer(state, index, must_see, row.version, Local("done"))
        if is_lease(slot) and slot != LASTING_LEASE:
            return Step(f"{index}: meets a lease", _after(state, index, Local("wait", must_see)))
        return Step(f"{index}: misses", _after(state, index, Local("lease", must_see)))

    def _wait(self, state: State, index: int, process: Reader, must_see: int) -> Iterator[Step]:
        if state.slot[:1] != b"L" and not state.refusing:
            yield self._meet(state, index, process, must_see, state.slot)
        yield _answer(state, index, must_see, state.row, self._bypassed(state, Local("done")))
        if not self.rules.waits:
            for reader in self._readers:
                beside = state.processes[reader]
                if beside.at == "fill":
                    yield _answer(state, index, must_see, beside.number, Local("done"))

    def _miss(self, state: State, index: int, process: Reader, local: Local) -> Iterator[Step]:
        for but, (slot, met, faults) in self._effects("lease", state, *self._lease(index, process)):
            if isinstance(met, bytes):
                step = self._meet(state, index, process, local.number, met)
                unserved = step.state.processes[index].at == "lease"
                yield step._replace(faults=frozenset({Fault.UNSERVED})) if unserved else step
            else:
                after = local._replace(at="load" if met is None else "bypass")
                yield Step(f"{index}: leases{but}", _after(state, index, after, slot), faults)
        if self.scope.silent:
            unanswered = local._replace(at="bypass", unanswered=True)
            if not self.rules.asks_once:
                unanswered = unanswered._replace(at="lease")
            elif not self.rules.believes_answers_only:
                unanswered = unanswered._replace(at="load")
            yield Step(f"{index}: no longer waits for its lease", _after(state, index, unanswered))

    def _fill(self, state: State, index: int, process: Reader, local: Local) -> Iterator[Step]:
        content = value(local.number, process.fingerprint) if local.number else ABSENT
        for but, (slot, filled, faults) in self._effects("fill", state, _token(index), content, _TTL_MS):
            # A read that found no row does not know the version from which on there was none.
            unknown_floor = state.slot[_VERSION] == HIGHEST_VERSION
            if _holds(state, index) and local.number == state.row != 0 and filled == 0 and not unknown_floor:
                faults |= {Fault.REFUSED}
            advances = self.scope.advances and filled == 0 and local.number
            done = local._replace(at="advance") if advances else local._replace(at="done", number=0)
            yield Step(f"{index}: fills with {local.number}{but}", _after(state, index, done, slot), faults)

    def _write(self, state: State, index: int, process: Writer, local: Local) -> Iterator[Step]:
        match local.at:
            case "start" if process.names_row:
                yield from self._ask_for_the_lease(state, index, process)
            case "start" if self._draws(process):
                yield from self._draw(state, index, process, local)
            case "start":
                yield from self._commit_own(state, index, process, local)
            case "draw":
                yield from self._draw(state, index, process, local)
            case "commit":
                yield from self._commit_own(state, index, process, local)
            case "change":
                yield from self._change_own(state, index, process, local)
            case "release":
                yield from self._release(state, index, local)

    def _draws(self, process: Writer) -> bool:
        return process.write == "insert" or not self.rules.commits_first

    def _draw(self, state: State, index: int, process: Writer, local: Local) -> Iterator[Step]:
        drawn = state.drawn + 1
        after = _after(state, index, local._replace(at="commit", number=drawn))._replace(drawn=drawn)
        if not self.rules.commits_first:
            change = self._change(_event(process, drawn), _token(index))
            after = after._replace(slot=self.scripts.run("change", state.slot, *change).slot)
        yield Step(f"{index}: draws {drawn}", after)

    def _commit_own(self, state: State, index: int, process: Writer, local: Local) -> Iterator[Step]:
        given_up = local._replace(at="release" if local.leased else "done", number=0, leased=False)
        yield Step(f"{index}: fails to {process.write}", _after(state, index, given_up))
        committed = self._commit(state, process, local.number)
        if committed is not None:
            version = committed.row or committed.deleted
            after = _after(committed, index, local._replace(at="change", number=version))
            if self.scope.promised_at == "commit":
                after = after._replace(promised=version)
            yield Step(f"{index}: commits {process.write} {version}", after)

    def _ask_for_the_lease(self, state: State, index: int, process: Writer) -> Iterator[Step]:
        begun = Local("draw" if self._draws(process) else "commit")
        for but, (slot, answer, faults) in self._effects("lease", state, *self._lease(index, process)):
            after = _after(state, index, begun._replace(leased=answer is None), slot)
            yield Step(f"{index}: asks for the lease{but}", after, faults)
        if self.scope.silent:
            leased = not self.rules.believes_answers_only
            after = _after(state, index, begun._replace(leased=leased, unanswered=True))
            yield Step(f"{index}: no longer waits for its lease", after)

    def _change_own(self, state: State, index: int, process: Writer | Own, local: Local) -> Iterator[Step]:
        event = _event(process, local.number)
        done = _after(state, index, local._replace(at="done", number=0, leased=False))
        done = done._replace(promised=max(state.promised, local.number))
        if not process.names_row and not self.rules.settles_other_rows:
            yield Step(f"{index}: acknowledges", done)
            return
        change = self._change(event, _token(index) if local.leased else _NO_TOKEN)
        fills = event.operation == "upsert" and self.scope.on_change == "refresh"
        for but, (slot, answer, faults) in self._effects("change", state, *change):
            if (
                fills
                and _holds(state, index)
                and local.leased
                and local.number == state.row
                and answer != b"filled"
                and not isinstance(answer, RefusedError)
                and state.slot[_VERSION] != HIGHEST_VERSION
            ):
                faults |= {Fault.REFUSED}
            after = done._replace(slot=slot)
            if not self.rules.logs_changes:
                after = after._replace(events=(*state.events, event))
            what = f"{index}: changes the slot to {local.number}, and acknowledges{but}"
            yield Step(what, after, faults)
        if fills and not process.names_row:
            # Of many or large changes of a transaction, the last are known without their payloads.
            emptied = self._change(event, _NO_TOKEN, whole=False)
            for but, (slot, _, faults) in self._effects("change", state, *emptied):
                what = f"{index}: empties the slot below {local.number}, and acknowledges{but}"
                yield Step(what, done._replace(slot=slot), faults)

    def _follow(self, state: State, index: int, process: Own, local: Local) -> Iterator[Step]:
        if local.unanswered:
            late = local._replace(unanswered=False)
            committed = self._committed(state, process, local.number)
            yield Step(f"{index}: its commit is carried out late", _after(committed, index, late))
            undone = late._replace(number=0)
            yield Step(f"{index}: its transaction is rolled back late", _after(state, index, undone))
        match local.at:
            case "start" if self._is_possible(state, process):
                # Its last statement, which finds out what it has changed.
                drawn = state.drawn + 1
                after = _after(state, index, Local("commit", drawn))._replace(drawn=drawn)
                if not self.rules.commits_first:
                    change = self._change(_event(process, drawn), _NO_TOKEN)
                    after = after._replace(slot=self.scripts.run("change", state.slot, *change).slot)
                yield Step(f"{index}: looks up its change {drawn}", after)
            case "commit":
                yield Step(f"{index}: rolls back", _after(state, index, Local("done")))
                committed = self._committed(state, process, local.number)
                after = _after(committed, index, local._replace(at="change"))
                yield Step(f"{index}: commits {process.write} {local.number}", after)
                lost = local._replace(at="forget", unanswered=True)
                yield Step(f"{index}: loses its connection", _after(state, index, lost))
            case "change":
                yield from self._change_own(state, index, process, local)
            case "forget" if self.rules.believes_known_ends_only:
                yield self._forget(state, index, local)
            case "forget":
                yield from self._change_own(state, index, process, local)

    def _forget(self, state: State, index: int, local: Local) -> Step:
        """Return the step that empties the slot, because the end of the commit is unknown."""
        slot = EMPTY if self.rules.forgets_unknown_ends and not state.refusing else state.slot
        after = local._replace(at="done") if local.unanswered else Local("done")
        forgotten = _after(state, index, after, slot)
        if not local.unanswered:
            # Whoever looks whether the transaction was committed must see it.
            forgotten = forgotten._replace(promised=max(state.promised, local.number))
        return Step(f"{index}: empties the slot, and reports the lost connection", forgotten)

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
                looks = state.slot == LASTING_LEASE or (state.slot != EMPTY and not is_lease(state.slot))
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
                seen = EMPTY if local.seen == NO_STRING else local.seen.removeprefix(BLANK)
                content = repair_of(kind, _row(process, local.number), self.scope.on_change)
                for but, (slot, _, faults) in self._effects("repair", state, seen, content, _TTL_MS):
                    yield Step(f"{index}: repairs{but}", _after(state, index, Local("done"), slot), faults)

    @staticmethod
    def _drift(process: Reconciler, local: Local, version: int) -> Kind | None:
        if local.seen == LASTING_LEASE or not is_readable(local.seen):
            return Kind.UNREADABLE
        return drift_of(local.seen, _row(process, version), deep=True)

    def _commit(self, state: State, process: Writer | Elsewhere, drawn: int) -> State | None:
        """Return the state after a commit, or None if there is nothing to commit.

        `drawn` is the version that was drawn before, or 0.
        """
        if not self._is_possible(state, process):
            return None
        overtaken = self.rules.redraws and drawn < state.deleted
        return self._committed(state, process, state.drawn + 1 if drawn == 0 or overtaken else drawn)

    def _is_possible(self, state: State, process: Writer | Own | Elsewhere) -> bool:
        """Return whether there is something to write, and nobody has locked it."""
        if any(state.processes[one].at == "commit" or state.processes[one].unanswered for one in self._own):
            return False
        return process.write == "truncate" or (process.write == "insert") == (state.row == 0)

    def _committed(self, state: State, process: Writer | Own | Elsewhere, version: int) -> State:
        """Return the state after a commit of a version."""
        write = process.write
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

    def _lease(self, index: int, process: Reader | Writer) -> tuple[bytes, ...]:
        """Return the arguments of the script `lease`."""
        purpose = b"read" if isinstance(process, Reader) else b"write"
        return _token(index), _LEASE_MS, process.fingerprint, purpose

    def _change(self, event: Event, token: bytes, *, whole: bool = True) -> tuple[bytes, ...]:
        """Return the arguments of the script `change`."""
        content = EMPTY
        if whole and event.operation == "upsert" and self.scope.on_change == "refresh":
            content = value(event.version, event.fingerprint)
        return encode_version(event.version), content, _TTL_MS, token

    def _release(self, state: State, index: int, local: Local) -> Iterator[Step]:
        for but, (slot, _, faults) in self._effects("release", state, _token(index)):
            yield Step(
                f"{index}: releases{but}", _after(state, index, local._replace(at="done"), slot), faults
            )


def _renumbered(state: State) -> State:
    """Return a state with the lowest numbers in the same order."""
    numbers = {0, state.row, state.deleted, state.promised, _number(state.slot)}
    numbers.update([event.version for event in state.events])
    for local in state.processes:
        numbers.add(abs(local.number))
        numbers.add(_number(local.seen))
    if len(numbers) > state.drawn:
        return state
    new = {number: rank for rank, number in enumerate(sorted(numbers))}
    new |= {-number: -rank for number, rank in new.items()}
    return State(
        row=new[state.row],
        drawn=len(numbers) - 1,
        deleted=new[state.deleted],
        promised=new[state.promised],
        slot=_with_number(state.slot, new),
        refusing=state.refusing,
        events=tuple([event._replace(version=new[event.version]) for event in state.events]),
        processes=tuple(
            [
                local._replace(number=new[local.number], seen=_with_number(local.seen, new))
                if local.number or local.seen
                else local
                for local in state.processes
            ]
        ),
    )


@cache
def _number(slot: bytes) -> int:
    """Return the number in a slot; 0 if it has none that a change can have drawn."""
    if not (is_value(slot) or is_lease(slot)) or slot[_VERSION] == HIGHEST_VERSION:
        return 0
    return int(slot[_VERSION])


def _with_number(slot: bytes, new: Mapping[int, int]) -> bytes:
    number = _number(slot)
    return slot[:1] + encode_version(new[number]) + slot[_VERSION.stop :] if number else slot


def _row(process: Reconciler, version: int) -> Row | None:
    return Row("1", version, process.fingerprint, b"{}") if version else None


def _token(index: int) -> bytes:
    return _TOKENS[index]


def _holds(state: State, index: int) -> bool:
    return state.slot[:1] == b"L" and state.slot[_TOKEN] == _token(index)


def _event(process: Writer | Own | Elsewhere, version: int) -> Event:
    match process.write:
        case "insert" | "update":
            return Event(version, "upsert", process.fingerprint)
        case "delete" | "delete and insert":
            return Event(version, "delete", process.fingerprint)
        case "truncate":
            return Event(version, "truncate", process.fingerprint)


def _after(state: State, index: int, local: Local, slot: bytes | None = None) -> State:
    """Return the state after a process has taken a step."""
    row, drawn, deleted, promised, before, refusing, events, processes = state
    processes = (*processes[:index], local, *processes[index + 1 :])
    # Most steps end here, and `_replace` takes three times as long.
    return State(row, drawn, deleted, promised, before if slot is None else slot, refusing, events, processes)


def _answer(state: State, index: int, must_see: int, version: int, after: Local) -> Step:
    """Return the step of a read that returns the row at a version, or no row if the version is 0."""
    older = version < must_see if version else state.deleted < must_see
    faults = frozenset({Fault.OLDER}) if older else NOTHING
    return Step(f"{index}: reads {version}", _after(state, index, after), faults)
