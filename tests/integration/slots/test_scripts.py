"""The scripts on a real Redis and a Redis Cluster follow the design to the byte and to the millisecond."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis as Client

from cachesync.change import Row
from cachesync.slots.clients import BlockingRedis, blocking_client
from cachesync.slots.layout import decode_value
from cachesync.slots.scripts import script
from tests.integration.slots.test_applier import GARBAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from local.redis import Redis
    from tests.integration.redis_cluster import RedisCluster

DIGITS: Final = 19
NEWEST: Final = 2**63 - 1
# Where digits carry, where a double can no longer distinguish neighbors, and where a 64-bit integer ends.
EDGES: Final = (1, 9, 10, 2**53, 2**53 + 1, 10**18 - 1, 10**18, 2**62, 2**62 + 1, NEWEST - 1, NEWEST)
# Far enough apart, and long enough, that the duration of a test cannot make one look like another.
MINUTE_MS: Final = 60_000
TTLS_MS: Final = (10 * MINUTE_MS, 20 * MINUTE_MS, 30 * MINUTE_MS)
LEASE_MS: Final = MINUTE_MS

NO_TOKEN: Final = ""
# The reply of PTTL for a missing key.
NO_SLOT: Final = -2

# A version, and the distance from the slot's version to use instead; None to use the version itself.
Drawn = tuple[int, int | None]

VERSIONS = st.tuples(st.sampled_from(EDGES) | st.integers(1, NEWEST), st.sampled_from([None, -1, 0, 1]))
FINGERPRINTS = st.sampled_from([b"01234567", b"\r\n\x00\xff*1$3"])
PAYLOADS = st.binary(min_size=1, max_size=40) | st.sampled_from(
    [b"A", b"L0000000000000000001", b"{}\r\n\x00\xff"]
)
# None stands for the token of the slot's lease. It is frequent because other tokens are only rejected.
TOKENS = st.sampled_from([None, None, None, "0123456789abcdef", "0123456789abcdee", NO_TOKEN])
TTLS = st.sampled_from(TTLS_MS)
PURPOSES = st.sampled_from(["read", "write"])
UNREADABLE = st.sampled_from(GARBAGE) | st.binary(max_size=40).filter(lambda slot: slot[:1] not in b"ALV")


@dataclass(frozen=True)
class Lease:
    token: str
    floor: int

    def encoded(self) -> bytes:
        return b"L" + str(self.floor).rjust(DIGITS, "0").encode() + self.token.encode()


@dataclass(frozen=True)
class Value:
    version: int
    fingerprint: bytes
    payload: bytes

    def encoded(self) -> bytes:
        return b"V" + str(self.version).rjust(DIGITS, "0").encode() + self.fingerprint + self.payload


@dataclass(frozen=True)
class Absent:
    def encoded(self) -> bytes:
        return b"A"


@dataclass(frozen=True)
class Garbage:
    content: bytes

    def encoded(self) -> bytes:
        return self.content


@dataclass
class Reference:
    """The slot as the design describes it; `slot` is None if it is empty."""

    slot: Lease | Value | Absent | Garbage | None = None
    ttl_ms: int = 0

    def lease(self, token: str, length_ms: int, fingerprint: bytes, purpose: str) -> bytes | None:
        floor = 0
        match self.slot:
            case Lease():
                return self.slot.encoded()
            case Absent() if purpose == "read":
                return self.slot.encoded()
            case Value() if self.slot.fingerprint == fingerprint:
                return self.slot.encoded()
            case Value():
                floor = self.slot.version
        self._hold(Lease(token, floor), length_ms)
        return None

    def fill(self, token: str, content: Value | Absent, ttl_ms: int) -> int:
        if not isinstance(self.slot, Lease) or self.slot.token != token:
            return 0
        floor = self.slot.floor
        accepted = content.version >= floor if isinstance(content, Value) else floor == 0
        self._hold(content if accepted else None, ttl_ms)
        return int(accepted)

    def change(self, version: int, content: Value | None, ttl_ms: int, token: str) -> bytes:
        match self.slot:
            case None:
                return b"empty"
            case Absent() | Garbage():
                self._hold(None)
                return b"emptied"
            case Value():
                if version <= self.slot.version:
                    return b"older" if version < self.slot.version else b"repeated"
                self._hold(content, ttl_ms)
                return b"emptied" if content is None else b"advanced"
            case Lease():
                return self._change_lease(self.slot, version, content, ttl_ms, token)

    def _change_lease(
        self, lease: Lease, version: int, content: Value | None, ttl_ms: int, token: str
    ) -> bytes:
        if lease.token == token:
            accepted = content is not None and version >= lease.floor
            self._hold(content if accepted else None, ttl_ms)
            return b"filled" if accepted else b"emptied"
        if version <= lease.floor:
            return b"older" if version < lease.floor else b"repeated"
        self._hold(Lease(lease.token, version), self.ttl_ms)
        return b"raised"

    def release(self, token: str) -> int:
        if not isinstance(self.slot, Lease) or self.slot.token != token:
            return 0
        self._hold(None)
        return 1

    def repair(self, seen: bytes, content: Value | None, ttl_ms: int) -> int:
        if self.slot is None or self.slot.encoded() != seen:
            return 0
        self._hold(content, ttl_ms)
        return 1

    def lose(self) -> None:
        self._hold(None)

    def spoil(self, content: bytes) -> None:
        self._hold(Garbage(content))

    def _hold(self, slot: Lease | Value | Absent | Garbage | None, ttl_ms: int = 0) -> None:
        self.slot = slot
        self.ttl_ms = ttl_ms


class Slot:
    """A slot in a real Redis."""

    def __init__(self, client: BlockingRedis) -> None:
        self._client = client
        self._name = f"test:slot:{secrets.token_hex(4)}"
        self._scripts = {
            name: client.register_script(script(name).source)
            for name in ("lease", "fill", "change", "changes", "release", "repair", "advance")
        }

    def run(self, name: str, *arguments: bytes | str | int) -> Any:
        return self._scripts[name](keys=[self._name], args=arguments)

    def change(self, version: int, content: bytes, ttl_ms: int, token: str = NO_TOKEN) -> Any:
        return self.run("change", str(version).rjust(DIGITS, "0"), content, ttl_ms, token)

    def content(self) -> Any:
        return self._client.get(self._name)

    def ttl_ms(self) -> Any:
        return self._client.pttl(self._name)

    def clear(self) -> None:
        self._client.delete(self._name)

    def spoil(self, content: bytes) -> None:
        self._client.set(self._name, content)


# Otherwise most steps would run on an empty slot, where only a lease has an effect.
if_empty = precondition(lambda comparison: comparison.reference.slot is None)
unless_empty = precondition(lambda comparison: comparison.reference.slot is not None)


class Comparison(RuleBasedStateMachine):
    """Runs the same operations on a real slot and on the reference."""

    _slot: ClassVar[Slot]

    def __init__(self) -> None:
        super().__init__()
        self._slot.clear()
        self.reference = Reference()

    @rule(token=TOKENS, fingerprint=FINGERPRINTS, purpose=PURPOSES)
    def lease(self, token: str | None, fingerprint: bytes, purpose: str) -> None:
        given = self._token(token) or "fedcba9876543210"
        answer = self._slot.run("lease", given, LEASE_MS, fingerprint, purpose)
        assert answer == self.reference.lease(given, LEASE_MS, fingerprint, purpose)

    @rule(content=UNREADABLE)
    def spoil(self, content: bytes) -> None:
        self._slot.spoil(content)
        self.reference.spoil(content)

    @if_empty
    @rule(version=VERSIONS, fingerprint=FINGERPRINTS, payload=PAYLOADS, ttl_ms=TTLS)
    def load(self, version: Drawn, fingerprint: bytes, payload: bytes, ttl_ms: int) -> None:
        self.lease(None, fingerprint, "read")
        self.fill(None, version, fingerprint, payload, ttl_ms)

    @if_empty
    @rule(fingerprint=FINGERPRINTS, ttl_ms=TTLS)
    def load_absent(self, fingerprint: bytes, ttl_ms: int) -> None:
        self.lease(None, fingerprint, "read")
        self.fill_absent(None, ttl_ms)

    @if_empty
    @rule(version=VERSIONS, ttl_ms=TTLS, fingerprint=FINGERPRINTS, purpose=PURPOSES)
    def lease_and_raise_its_floor(
        self, version: Drawn, ttl_ms: int, fingerprint: bytes, purpose: str
    ) -> None:
        self.lease(None, fingerprint, purpose)
        self.change_to_nothing(NO_TOKEN, version, ttl_ms)

    @if_empty
    @rule(token=TOKENS, version=VERSIONS, fingerprint=FINGERPRINTS, payload=PAYLOADS, ttl_ms=TTLS)
    def come_to_nothing(
        self, token: str | None, version: Drawn, fingerprint: bytes, payload: bytes, ttl_ms: int
    ) -> None:
        self.fill(token, version, fingerprint, payload, ttl_ms)
        self.fill_absent(token, ttl_ms)
        self.change(token, version, fingerprint, payload, ttl_ms)
        self.change_to_nothing(token, version, ttl_ms)
        self.release(token)

    @unless_empty
    @rule(token=TOKENS, version=VERSIONS, fingerprint=FINGERPRINTS, payload=PAYLOADS, ttl_ms=TTLS)
    def fill(
        self, token: str | None, version: Drawn, fingerprint: bytes, payload: bytes, ttl_ms: int
    ) -> None:
        given, value = self._token(token), Value(self._version(version), fingerprint, payload)
        answer = self._slot.run("fill", given, value.encoded(), ttl_ms)
        assert answer == self.reference.fill(given, value, ttl_ms)

    @unless_empty
    @rule(token=TOKENS, ttl_ms=TTLS)
    def fill_absent(self, token: str | None, ttl_ms: int) -> None:
        given = self._token(token)
        answer = self._slot.run("fill", given, Absent().encoded(), ttl_ms)
        assert answer == self.reference.fill(given, Absent(), ttl_ms)

    @unless_empty
    @rule(token=TOKENS, version=VERSIONS, fingerprint=FINGERPRINTS, payload=PAYLOADS, ttl_ms=TTLS)
    def change(
        self, token: str | None, version: Drawn, fingerprint: bytes, payload: bytes, ttl_ms: int
    ) -> None:
        given, value = self._token(token), Value(self._version(version), fingerprint, payload)
        answer = self._slot.change(value.version, value.encoded(), ttl_ms, given)
        assert answer == self.reference.change(value.version, value, ttl_ms, given)

    @rule(version=VERSIONS, fingerprint=FINGERPRINTS, payload=PAYLOADS, ttl_ms=TTLS)
    def advance(self, version: Drawn, fingerprint: bytes, payload: bytes, ttl_ms: int) -> None:
        value = Value(self._version(version), fingerprint, payload)
        number = str(value.version).rjust(DIGITS, "0")
        assert self._slot.run("advance", ttl_ms, number, value.encoded()) == 1
        self.reference.change(value.version, value, ttl_ms, NO_TOKEN)

    @rule(version=VERSIONS, fingerprint=FINGERPRINTS, payload=PAYLOADS | st.none(), ttl_ms=TTLS)
    def receive(self, version: Drawn, fingerprint: bytes, payload: bytes | None, ttl_ms: int) -> None:
        value = Value(self._version(version), fingerprint, payload or b"")
        content = value.encoded() if payload else value.encoded()[:20]
        effect = self.reference.change(value.version, value if payload else None, ttl_ms, NO_TOKEN)
        assert self._slot.run("changes", ttl_ms, content) == [b"", effect, 1]

    @unless_empty
    @rule(token=TOKENS, version=VERSIONS, ttl_ms=TTLS)
    def change_to_nothing(self, token: str | None, version: Drawn, ttl_ms: int) -> None:
        given, number = self._token(token), self._version(version)
        answer = self._slot.change(number, b"", ttl_ms, given)
        assert answer == self.reference.change(number, None, ttl_ms, given)

    @unless_empty
    @rule(token=TOKENS)
    def release(self, token: str | None) -> None:
        given = self._token(token)
        assert self._slot.run("release", given) == self.reference.release(given)

    @rule(
        seen=st.sampled_from([None, None, b"", b"A"]),
        version=st.none() | VERSIONS,
        fingerprint=FINGERPRINTS,
        payload=PAYLOADS,
        ttl_ms=TTLS,
    )
    def repair(
        self, seen: bytes | None, version: Drawn | None, fingerprint: bytes, payload: bytes, ttl_ms: int
    ) -> None:
        if seen is None:
            seen = self._slot.content() or b""
        value = None if version is None else Value(self._version(version), fingerprint, payload)
        answer = self._slot.run("repair", seen, b"" if value is None else value.encoded(), ttl_ms)
        assert answer == self.reference.repair(seen, value, ttl_ms)

    @unless_empty
    @rule()
    def lose(self) -> None:
        self._slot.clear()
        self.reference.lose()

    @invariant()
    def holds_the_same_bytes(self) -> None:
        expected = self.reference.slot
        content = self._slot.content()
        assert content == (None if expected is None else expected.encoded())
        if isinstance(expected, Garbage):
            assert decode_value(content, "1", b"01234567") is None
        if isinstance(expected, Value):
            row = Row("1", expected.version, expected.fingerprint, expected.payload)
            assert decode_value(content, "1", expected.fingerprint) == row

    @invariant()
    def has_the_same_time_to_live(self) -> None:
        left = self._slot.ttl_ms()
        if self.reference.slot is None:
            assert left == NO_SLOT
        elif not isinstance(self.reference.slot, Garbage):
            assert max(0, self.reference.ttl_ms - MINUTE_MS) < left <= self.reference.ttl_ms

    def _token(self, drawn: str | None) -> str:
        if drawn is not None:
            return drawn
        return self.reference.slot.token if isinstance(self.reference.slot, Lease) else NO_TOKEN

    def _version(self, drawn: Drawn) -> int:
        """Return a version, or one next to the slot's, because that is where comparisons can go wrong."""
        version, distance = drawn
        match self.reference.slot:
            case Value(version=near) | Lease(floor=near) if distance is not None:
                return min(max(near + distance, 1), NEWEST)
        return version


@pytest.fixture(params=["redis_sa", "redis_cluster"])
def slot(request: pytest.FixtureRequest) -> Iterator[Slot]:
    server: Redis | RedisCluster = request.getfixturevalue(request.param)
    with blocking_client(server.url, 5) as client:
        slot = Slot(client)
        yield slot
        slot.clear()


def test_every_operation_follows_the_design(slot: Slot) -> None:
    class OnThisSlot(Comparison):
        _slot = slot

    run_state_machine_as_test(OnThisSlot, settings=settings(max_examples=75, stateful_step_count=50))


SMALL_VERSIONS = st.integers(1, 3)
VALUES = st.builds(Value, SMALL_VERSIONS, FINGERPRINTS, PAYLOADS)
LEASES = st.builds(Lease, st.just("token"), st.integers(0, 3))
CONTENTS = st.none() | st.just(Absent()) | VALUES | LEASES | st.builds(Garbage, UNREADABLE)


@given(slots=st.lists(st.tuples(CONTENTS, VALUES, st.booleans()), min_size=1, max_size=20))
@settings(max_examples=150)
def test_many_slots_change_together_as_each_one_does_alone(
    redis_sa: Redis, slots: list[tuple[Value | Lease | Absent | Garbage | None, Value, bool]]
) -> None:
    with Client.from_url(redis_sa.url) as client:
        client.flushall()
        alone, together = (
            [f"test:{number}:{how}" for number in range(len(slots))] for how in ("alone", "together")
        )
        for names in (alone, together):
            for name, (before, _, _) in zip(names, slots, strict=True):
                if before is not None:
                    client.set(name, before.encoded(), px=LEASE_MS)
        effects: Counter[bytes] = Counter()
        change, changes = (client.register_script(script(name).source) for name in ("change", "changes"))
        for name, (_, after, is_row) in zip(alone, slots, strict=True):
            encoded = after.encoded()
            arguments = (encoded[1:20], encoded if is_row else b"", TTLS_MS[0], NO_TOKEN)
            effects[change(keys=[name], args=arguments)] += 1
        contents = [after.encoded() if is_row else after.encoded()[:20] for _, after, is_row in slots]
        refused, *counted = changes(keys=together, args=[TTLS_MS[0], *contents])
        assert refused == b""
        assert dict(zip(counted[::2], counted[1::2], strict=True)) == effects
        assert client.mget(together) == client.mget(alone)
        for name, other in zip(alone, together, strict=True):
            assert abs(client.pttl(name) - client.pttl(other)) < MINUTE_MS / 2


@pytest.mark.parametrize(("older", "newer"), list(pairwise(EDGES)))
def test_versions_compare_to_the_last_digit(slot: Slot, older: int, newer: int) -> None:
    ttl_ms = TTLS_MS[0]
    old, new = (Value(version, b"01234567", b"{}") for version in (older, newer))
    assert slot.run("lease", "token", LEASE_MS, old.fingerprint, "read") is None
    assert slot.run("fill", "token", old.encoded(), ttl_ms) == 1
    assert slot.change(newer, new.encoded(), ttl_ms) == b"advanced"
    assert slot.change(older, old.encoded(), ttl_ms) == b"older"
    assert slot.content() == new.encoded()


@pytest.mark.parametrize(("older", "newer"), list(pairwise(EDGES)))
def test_floors_compare_to_the_last_digit(slot: Slot, older: int, newer: int) -> None:
    ttl_ms = TTLS_MS[0]
    old, new = (Value(version, b"01234567", b"{}") for version in (older, newer))
    for writes in (False, True):
        for value, expected in ((old, None), (new, new.encoded())):
            slot.clear()
            assert slot.run("lease", "token", LEASE_MS, value.fingerprint, "read") is None
            assert slot.change(newer, b"", ttl_ms) == b"raised"
            assert slot.change(older, b"", ttl_ms) == b"older"
            if writes:
                slot.change(value.version, value.encoded(), ttl_ms, "token")
            else:
                slot.run("fill", "token", value.encoded(), ttl_ms)
            assert slot.content() == expected


def test_expired_lease_cannot_be_filled(slot: Slot) -> None:
    assert slot.run("lease", "token", 20, b"01234567", "read") is None
    deadline = time.monotonic() + 10
    while slot.content() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert slot.run("fill", "token", Value(1, b"01234567", b"{}").encoded(), TTLS_MS[0]) == 0
    assert slot.content() is None
