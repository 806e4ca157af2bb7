"""Requests about dead letters, made by a command or a DAG run."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cachesync.dead_letters.audit import readable
from cachesync.entity import TOPIC_PREFIX
from cachesync.kafka.topics import DEAD_LETTERS, PARKING_LOT

if TYPE_CHECKING:
    from cachesync.dead_letters.letter import Letter

LETTER: Final = r"^(dead-letters|parking-lot):\d{1,9}:\d{1,18}$"
"""Pattern of a letter's name, such as `parking-lot:0:17`."""

MIN_RATE: Final = 0.01
"""The smallest maximum number of letters per second: at that rate, each letter takes 100 seconds."""
MAX_RATE: Final = 1_000_000
"""The largest maximum number of letters per second. No letters can be retried that fast."""
MAX_LISTED: Final = 100_000
"""The largest number of letters in one list, which must fit into an XCom."""
MAX_REASON: Final = 1000
"""The maximum length of a reason, in characters."""
REASON: Final = r"^[^\x00]*$"
"""Pattern of a reason: PostgreSQL stores text without NUL."""


def _letter_name(text: str) -> str:
    """Return a letter's name.

    Raises:
        ValueError: it is not the name of a letter.
    """
    if not re.fullmatch(LETTER, text):
        message = f"{text!r} is not the name of a letter, such as parking-lot:0:17; list shows the names"
        raise ValueError(message)
    return text


class RequestAction(StrEnum):
    """What to do.

    Attributes:
        RETRY: retry the letters that are due, and park those that fail for the last time.
        LIST: return the open letters.
        SHOW: return one letter in full.
        STATS: count the open letters, and the actions of the last day.
        REPLAY: retry letters now, including parked ones.
        DISCARD: close letters without retrying them.
    """

    RETRY = "retry"
    LIST = "list"
    SHOW = "show"
    STATS = "stats"
    REPLAY = "replay"
    DISCARD = "discard"


class LetterTopic(StrEnum):
    """The topics that contain letters, without their common prefix."""

    DEAD_LETTERS = DEAD_LETTERS.removeprefix(TOPIC_PREFIX)
    PARKING_LOT = PARKING_LOT.removeprefix(TOPIC_PREFIX)


class Request(BaseModel):
    """An action and the letters it applies to. A letter must match all the filters that are given.

    Attributes:
        action: what to do.
        letters: select the letters with these names, such as `parking-lot:0:17`.
        topic: select the letters in this topic; None selects both topics.
        services: select the letters of these services' caches.
        entities: select the letters of these entities.
        keys: select the letters of the rows with these keys.
        all: select every letter if no filter is given; required in that case by `replay` and `discard`.
        dry_run: return what `replay` or `discard` would do, and change nothing.
        rate: for `replay`, the maximum number of letters per second; None for no limit.
        reason: for `discard`, the reason that is stored in the audit table.
        limit: for `list`, the maximum number of letters to return.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: RequestAction = RequestAction.RETRY
    letters: tuple[Annotated[str, AfterValidator(_letter_name)], ...] = ()
    topic: LetterTopic | None = None
    services: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    all: bool = False
    dry_run: bool = False
    rate: Annotated[float | None, Field(ge=MIN_RATE, le=MAX_RATE)] = None
    reason: Annotated[str | None, Field(max_length=MAX_REASON, pattern=REASON)] = None
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = 100

    @model_validator(mode="after")
    def _complete(self) -> Request:
        """Reject a request that would do something other than intended.

        Raises:
            ValueError: something is missing; the text names it.
        """
        if self.action is RequestAction.SHOW and len(self.letters) != 1:
            message = "show requires exactly one letter, such as parking-lot:0:17; use list to find it"
            raise ValueError(message)
        if self.action in {RequestAction.REPLAY, RequestAction.DISCARD} and not (
            self.has_filters or self.all
        ):
            message = (
                f"{self.action} requires letters, a topic, a service, an entity or a key; "
                "set all (--all) to select every letter"
            )
            raise ValueError(message)
        if self.action is RequestAction.DISCARD and not (self.reason and self.reason.strip()):
            message = "discard requires a reason, which is stored in the audit table"
            raise ValueError(message)
        return self

    @property
    def has_filters(self) -> bool:
        """Whether any filter is given."""
        return bool(self.letters or self.topic or self.services or self.entities or self.keys)

    @property
    def topics(self) -> list[str]:
        """The topics in which to look for letters, with their prefix."""
        named = {TOPIC_PREFIX + letter.partition(":")[0] for letter in self.letters}
        selected = {TOPIC_PREFIX + self.topic} if self.topic else {DEAD_LETTERS, PARKING_LOT}
        return sorted(selected & named if named else selected)

    def matches(self, letter: Letter) -> bool:
        """Return whether a letter of one of `topics` matches all filters."""
        return (
            (not self.letters or str(letter.id) in self.letters)
            and (not self.services or letter.service in self.services)
            and (not self.entities or letter.entity in self.entities)
            and (not self.keys or readable(letter.key) in self.keys)
        )
