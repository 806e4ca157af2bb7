"""What can be asked about dead letters, by a command or a DAG's run."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cachesync.dead_letters.audit import readable
from cachesync.entity import TOPIC_PREFIX
from cachesync.kafka.topics import DEAD_LETTERS, PARKING_LOT

if TYPE_CHECKING:
    from cachesync.dead_letters.letter import Letter

LETTER: Final = r"^(dead-letters|parking-lot):\d{1,9}:\d{1,18}$"
"""How a letter is called."""


class RequestAction(StrEnum):
    """What is asked for."""

    RETRY = "retry"
    LIST = "list"
    SHOW = "show"
    STATS = "stats"
    REPLAY = "replay"
    DISCARD = "discard"


class LetterTopic(StrEnum):
    """A topic of letters, without its prefix."""

    DEAD_LETTERS = DEAD_LETTERS.removeprefix(TOPIC_PREFIX)
    PARKING_LOT = PARKING_LOT.removeprefix(TOPIC_PREFIX)


class Request(BaseModel):
    """What is asked for, and about which letters. A letter has to meet all that is said of it.

    Attributes:
        action: `retry`: try those whose time has come, park what has failed for the last time; `list`,
            `show` and `stats`: tell; `replay`: try at once, parked ones too; `discard`: close untried.
        letters: these, such as `parking-lot:0:17`.
        topic: those that wait, or those that are parked; None: both.
        services: those of these services' caches.
        entities: those about these entities.
        keys: those about these rows.
        all: whether, where nothing else is said of the letters, all are meant; for `replay` and `discard`.
        dry_run: tell what `replay` or `discard` would do, and do nothing.
        rate: the most letters per second of `replay`.
        reason: why, for `discard`.
        limit: the most letters that `list` tells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: RequestAction = RequestAction.RETRY
    letters: tuple[Annotated[str, StringConstraints(pattern=LETTER)], ...] = ()
    topic: LetterTopic | None = None
    services: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    all: bool = False
    dry_run: bool = False
    rate: Annotated[float | None, Field(gt=0)] = None
    reason: str | None = None
    limit: Annotated[int, Field(ge=1)] = 100

    @model_validator(mode="after")
    def _complete(self) -> Request:
        """Refuse what would do something else than was meant.

        Raises:
            ValueError: something is missing; the text says what.
        """
        if self.action is RequestAction.SHOW and len(self.letters) != 1:
            message = "show needs one letter, such as parking-lot:0:17; list names them"
            raise ValueError(message)
        if self.action in {RequestAction.REPLAY, RequestAction.DISCARD} and not (self.narrowed or self.all):
            message = f"{self.action} needs letters, a service, an entity, a key or a topic; or all"
            raise ValueError(message)
        if self.action is RequestAction.DISCARD and not (self.reason and self.reason.strip()):
            message = "discard needs a reason, which is kept with the record of it"
            raise ValueError(message)
        return self

    @property
    def narrowed(self) -> bool:
        """Whether anything is said of the letters."""
        return bool(self.letters or self.topic or self.services or self.entities or self.keys)

    @property
    def topics(self) -> list[str]:
        """Where the letters are."""
        named = {TOPIC_PREFIX + letter.partition(":")[0] for letter in self.letters}
        asked = {TOPIC_PREFIX + self.topic} if self.topic else {DEAD_LETTERS, PARKING_LOT}
        return sorted(asked & named if named else asked)

    def wants(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.letters or str(letter.id) in self.letters)
            and (not self.services or letter.service in self.services)
            and (not self.entities or letter.entity in self.entities)
            and (not self.keys or readable(letter.key) in self.keys)
        )
