"""What follows a commit: the changes reach the slots of this service, and are published."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachesync.change import Change, Operation
from cachesync.errors import CacheUnavailableError
from cachesync.lookup import lookup_name
from cachesync.slots.layout import (
    EMPTIES_ABSENT,
    EMPTY,
    LONGEST_LEASE_MS,
    SlotChange,
    decode_value,
    lookup_changes_of,
    new_token,
    slot_change_of,
    slot_name,
    values_after,
)
from cachesync.value import FINGERPRINT, UP_TO_PAYLOAD, VERSION, encode_head, encode_value, encode_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cachesync.entity import Entity
    from cachesync.service.publisher import Publisher
    from cachesync.slots.single import Slots

# Maximum number of slots that are changed in one round trip.
_SLOTS_AT_ONCE: Final = 100
# Of the slot with the declared lookups: if it is lost, there is only one scan more.
_DECLARED_MS: Final = 10 * 365 * 86_400_000


@dataclass(slots=True)
class Lease:
    """The lease of the slot that a write changes.

    Attributes:
        name: the slot's Redis key; empty if the write changes none that is known before its commit.
        token: the token of the lease; empty if the write does not hold it.
        applied: whether the change of the write has been applied to the slot.
    """

    name: str = ""
    token: str = ""
    applied: bool = False


class Rest(Change):
    """All further changes that a transaction made to an entity: for the slots what a truncate is.

    Its version is that of the last one.
    """


class Settler:
    """Applies committed changes of this service to its slots, and publishes them.

    Args:
        service: the name of the service.
        entities: the declared entities, by name.
        slots: the slots of the service.
        publisher: publishes the changes; None if the relay publishes them.

    Attributes:
        retries: the attempts in progress to empty the slots of entities.
        follows_lookups: whether no *absent* of a unique lookup is from before the service declared it.
    """

    def __init__(
        self, service: str, entities: Mapping[str, Entity], slots: Slots, publisher: Publisher | None
    ) -> None:
        self._service = service
        self._entities = entities
        self._slots = slots
        self._publisher = publisher
        # The entities whose slots were to be emptied when Redis did not confirm it, each with a new object.
        self._unforgotten: dict[str, object] = {}
        self.retries: set[asyncio.Task[None]] = set()
        self.follows_lookups = False

    def on(self, slots: Slots) -> Settler:
        """Return what applies changes to these slots, and publishes nothing."""
        other = Settler(self._service, self._entities, slots, None)
        # It reads nothing.
        other.follows_lookups = True
        return other

    def is_forgotten(self, entity: str) -> bool:
        """Return the same in any thread, without emptying anything."""
        return entity not in self._unforgotten

    def can_be_read(self, entity: str) -> bool:
        """Return whether no slot of an entity can be older than what was to empty all of them.

        If one can, the slots are emptied, as soon as Redis responds.
        """
        self._retry_soon()
        return self.is_forgotten(entity)

    def _retry_soon(self) -> None:
        if self.retries or (self.follows_lookups and not self._unforgotten):
            return
        retry = asyncio.get_running_loop().create_task(self._retry())
        self.retries.add(retry)
        retry.add_done_callback(self.retries.discard)

    async def _retry(self) -> None:
        await self.follow_lookups()
        for entity, since in list(self._unforgotten.items()):
            forgotten = await self._forget_slots(entity, self._prefixes(entity))
            if forgotten and self._unforgotten[entity] is since:
                del self._unforgotten[entity]

    async def follow_lookups(self) -> None:
        """Empty every *absent* of the unique lookups, unless the service has declared the same ones before.

        Its processes may have written rows without them. Which ones they have declared is in a slot that is
        like that of a row, with a fingerprint of the lookups, with which the token of its lease begins, too.
        If Redis does not respond, it is tried again.
        """
        if self.follows_lookups:
            return
        name = slot_name(self._service, lookup_name("", ""), "")
        lookups = ",".join(
            lookup_name(entity.name, lookup)
            for entity in self._entities.values()
            for lookup in entity.lookups
        ).encode()
        fingerprint = hashlib.sha256(lookups).hexdigest()[:8].encode()
        token = fingerprint.decode() + new_token()
        try:
            if not lookups:
                if await self._slots.get(name) is not None:
                    await self._slots.delete(name)
                self.follows_lookups = True
                return
            declared = await self._slots.lease(name, token, LONGEST_LEASE_MS, fingerprint, "read")
            if declared is None or decode_value(declared, "", fingerprint) is None:
                for entity in self._entities.values():
                    if entity.unique:
                        await self._change_all(lookup_name(entity.name, ""), EMPTIES_ABSENT[VERSION])
            if declared is None:
                # Unless another process has declared others meanwhile.
                content = encode_value(1, fingerprint, lookups)
                await self._slots.fill(name, token, content, _DECLARED_MS)
            elif declared[FINGERPRINT] != fingerprint:
                # Of two that declare others at the same time, neither is the last.
                await self._slots.delete(name)
        except CacheUnavailableError:
            return
        self.follows_lookups = True

    async def apply(self, changes: Iterable[Change], lease: Lease | None = None) -> bool:
        """Apply committed changes to their slots.

        Args:
            changes: the changes. One without a payload empties its slot, unless that has a newer row.
            lease: the lease of the write that made them, if it took one.

        Returns:
            Whether Redis confirmed it for all of them, and no slot has a newer row. Processes that are opened
            later read the changes, too.
        """
        # First, so that a retry does not do the same at the same time.
        await self.follow_lookups()
        self._retry_soon()
        newest: dict[tuple[str, str], Change] = {}
        truncates: dict[str, Change] = {}
        for change in changes:
            if change.entity not in self._entities:
                continue
            if change.key is None:
                other = truncates.setdefault(change.entity, change)
                if other.version < change.version:
                    truncates[change.entity] = change
                continue
            other = newest.setdefault((change.entity, change.key), change)
            if other.version < change.version:
                newest[change.entity, change.key] = change
        slots, unknown = self._slots_of(newest.values())
        applied = await self._change(slots, lease or Lease()) and self.follows_lookups
        for entity in unknown:
            applied &= await self._empty(entity, [lookup_name(entity, "")], EMPTIES_ABSENT[VERSION])
        for entity, truncate in truncates.items():
            applied &= await self._empty(entity, self._prefixes(entity), encode_version(truncate.version))
        return applied

    async def forget(self, changes: Iterable[Change]) -> bool:
        """Empty the slots of changes that may have been committed or not; return whether Redis confirmed it.

        A slot can be lost at any moment, so this is right in either case.
        """
        known = [change for change in changes if change.entity in self._entities]
        slots, unknown = self._slots_of(change for change in known if change.key is not None)
        forgotten = await self._delete({change.name for change, _ in slots})
        whole = {change.entity for change in known if change.key is None}
        for entity in whole | unknown:
            prefixes = self._prefixes(entity) if entity in whole else [lookup_name(entity, "")]
            forgotten &= await self._forget_slots(entity, prefixes)
        return forgotten

    async def forget_everything(self) -> bool:
        """Empty all slots, as nobody knows which rows have changed; return whether Redis confirmed it."""
        forgotten = True
        for entity in self._entities:
            forgotten &= await self._forget_slots(entity, self._prefixes(entity))
        return forgotten

    def publish(self, changes: Iterable[Change]) -> None:
        """Publish committed changes, except those that are not known as a whole: the relay publishes them."""
        if self._publisher is None:
            return
        for change in changes:
            is_whole = change.operation is not Operation.UPSERT or change.value is not None
            if is_whole and not isinstance(change, Rest) and change.entity in self._entities:
                self._publisher.publish(self._entities[change.entity].topic, change)

    async def _forget_slots(self, entity: str, prefixes: Iterable[str]) -> bool:
        """Empty all slots of an entity with these prefixes; return whether Redis confirmed it."""
        forgotten = True
        try:
            for prefix in prefixes:
                async for names in self._slots.names(f"{self._service}:{prefix}"):
                    forgotten &= await self._delete(names)
        except CacheUnavailableError:
            forgotten = False
        if not forgotten:
            self._unforgotten[entity] = object()
        return forgotten

    def _slots_of(self, changes: Iterable[Change]) -> tuple[list[tuple[SlotChange, bool]], set[str]]:
        """Return the slots of the rows and lookups that have changed, and the entities of unknown lookups.

        With each slot, whether it is that of a lookup.
        """
        slots = []
        unknown = set()
        for change in changes:
            entity = self._entities[change.entity]
            slots.append((slot_change_of(self._service, entity, change), False))
            values = values_after(entity, change)
            if values is None:
                unknown.add(entity.name)
                continue
            head = encode_head(change.version) if change.value is None else change.value[:UP_TO_PAYLOAD]
            of_lookups = lookup_changes_of(self._service, entity, change.key or "", head, values)
            slots += [(one, True) for one in of_lookups]
        return slots, unknown

    def _prefixes(self, entity: str) -> list[str]:
        """Return how the names of an entity's slots continue after that of the service."""
        lookups = [lookup_name(entity, "")] if self._entities[entity].unique else []
        return [f"{entity}:", *lookups]

    async def _delete(self, names: Iterable[str]) -> bool:
        replies = await asyncio.gather(*map(self._slots.delete, names), return_exceptions=True)
        for reply in replies:
            if reply is not None and not isinstance(reply, CacheUnavailableError):
                raise reply
        return not any(replies)

    async def _empty(self, entity: str, prefixes: Iterable[str], version: bytes) -> bool:
        """Empty all slots of an entity with these prefixes that are older than a version.

        Returns:
            Whether Redis confirmed it.
        """
        try:
            for prefix in prefixes:
                await self._change_all(prefix, version)
        except CacheUnavailableError:
            self._unforgotten[entity] = object()
            return False
        return True

    async def _change_all(self, prefix: str, version: bytes) -> None:
        async for names in self._slots.names(f"{self._service}:{prefix}"):
            changes = [SlotChange(name, version, EMPTY, 1) for name in names]
            await asyncio.gather(*(self._slots.change(change, "") for change in changes))

    async def _change(self, changes: Sequence[tuple[SlotChange, bool]], lease: Lease) -> bool:
        applied = True
        for start in range(0, len(changes), _SLOTS_AT_ONCE):
            together = changes[start : start + _SLOTS_AT_ONCE]
            if len(together) == 1:
                # The usual write, which saves a task.
                applied &= await self._change_one(*together[0], lease)
            else:
                applied &= all(await asyncio.gather(*(self._change_one(*one, lease) for one in together)))
        return applied

    async def _change_one(self, change: SlotChange, is_lookup: bool, lease: Lease) -> bool:  # noqa: FBT001
        # A trigger of the table can give the row another key than the one whose slot was leased.
        is_leased = change.name == lease.name
        try:
            applied = await self._slots.change(change, lease.token if is_leased else "")
        except CacheUnavailableError:
            return False
        lease.applied |= is_leased
        # The slot of a lookup can have the higher version of another row; reads find that it is no longer so.
        return applied or is_lookup
