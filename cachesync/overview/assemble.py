"""Assembles the parts of the answers from what the servers say."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from cachesync.overview.models import Consumer, LetterGroup, LetterReport, Letters, SlotReport
from cachesync.overview.words import counted, sentence

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from cachesync.dead_letters.open_letters import OpenLetter
    from cachesync.kafka.groups import Group, Place
    from cachesync.overview.verdict import CacheFacts, Verdict

# Of the letters of an entity in a cache.
_REASONS: Final = 10


def consumers_of(group: Group) -> tuple[Consumer, ...]:
    """Return the members of a group with their partitions."""
    return tuple(
        Consumer(
            client=member.client, host=member.host, partitions=tuple(map(_name, sorted(member.partitions)))
        )
        for member in group.members
    )


def unconsumed_in(group: Group) -> tuple[str, ...]:
    """Return the partitions that no member of a group has."""
    consumed = {place for member in group.members for place in member.partitions}
    return tuple(_name(place) for place in sorted(group.lag) if place not in consumed)


def lag_by_entity(group: Group, entities: Mapping[str, str]) -> Counter[str]:
    """Return the messages that a group has yet to apply, by entity.

    Args:
        group: the group.
        entities: the names of the entities by topic.
    """
    lag: Counter[str] = Counter()
    for (topic, _), messages in group.lag.items():
        lag[entities[topic]] += messages
    return lag


def letters_of(open_letters: Collection[OpenLetter], now: datetime) -> Letters:
    """Return the open letters, those with the same cause together, the largest groups first.

    An error can name the row, so that each letter has another. The rarest are together.
    """
    places: defaultdict[tuple[str, str, str, bool], dict[str, list[OpenLetter]]] = defaultdict(dict)
    for one in open_letters:
        place = places[one.service, one.entity, one.stage, one.parked]
        place.setdefault(one.error, []).append(one)
    made = []
    for place in places.values():
        alike = sorted(place.values(), key=len, reverse=True)
        made += [_group(letters, now) for letters in alike[:_REASONS]]
        if rest := alike[_REASONS:]:
            group = _group([letter for letters in rest for letter in letters], now)
            reason = f"{counted(len(rest), 'other reason')}, such as: {group.reason}"
            made.append(group.model_copy(update={"reason": reason}))
    return Letters(
        groups=tuple(sorted(made, key=lambda group: -group.letters)),
        open=sum(group.letters for group in made if not group.parked),
        due=sum(group.due for group in made),
        parked=sum(group.letters for group in made if group.parked),
    )


def _group(alike: list[OpenLetter], now: datetime) -> LetterGroup:
    newest = max(alike, key=lambda one: one.last_failed_at)
    waits = [
        (now - one.not_before).total_seconds() for one in alike if not one.parked and one.not_before <= now
    ]
    return LetterGroup(
        service=newest.service,
        entity=newest.entity,
        stage=newest.stage,
        reason=sentence(newest.error),
        parked=newest.parked,
        letters=len(alike),
        due=len(waits),
        due_s=max(waits, default=0.0),
        first_failed_at=min(one.first_failed_at for one in alike),
        example=str(newest.id),
    )


def letter_report(letter: OpenLetter) -> LetterReport:
    """Return an open letter of a key."""
    return LetterReport(
        letter=str(letter.id),
        service=letter.service,
        version=letter.version,
        stage=letter.stage,
        parked=letter.parked,
        attempt=letter.attempt,
        maximum=letter.maximum,
        last_failed_at=letter.last_failed_at,
        not_before=letter.not_before,
        error=letter.error,
    )


def slot_report(cache: CacheFacts, name: str, verdict: Verdict) -> SlotReport:
    """Return what a cache holds of a key.

    Args:
        cache: what is known of the cache.
        name: the slot's Redis key.
        verdict: the verdict on it.
    """
    slot, consumption = cache.slot, cache.consumption
    return SlotReport(
        service=cache.service,
        name=name,
        kind=slot.kind,
        version=slot.version,
        ttl_s=slot.ttl_s,
        payload=slot.payload,
        partition=None if consumption is None else consumption.partition,
        consumer_lag=None if consumption is None else consumption.lag,
        consumer=None if consumption is None else consumption.consumer,
        assessment=verdict.assessment,
        verdict=verdict.text,
    )


def _name(place: Place) -> str:
    topic, partition = place
    return f"{topic}[{partition}]"
