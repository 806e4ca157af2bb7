"""Time from the commit of a change to the new value in sb's Redis, under open-loop load.

Changes are sent on schedule, whether or not earlier ones have been answered, to rows that the caches hold. A
change is a statement of SQL or a PUT at sa; its time starts with the response to the commit or to the PUT.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from benchmarks import pgbench
from benchmarks.cpu import Usage, accounting
from benchmarks.http_client import Client
from benchmarks.percentiles import milliseconds
from benchmarks.target import FIRST, ROWS
from benchmarks.watch import Watch
from local.ports import HOST

if TYPE_CHECKING:
    from benchmarks.target import Target

_CLIENTS: Final = 32
_LAG_LIMIT_SECONDS: Final = 30.0
# Up to these rates all changes are timed, half of them, a fifth, or a tenth: the last digit of a key decides.
_SAMPLES: Final = ((500, "*"), (1000, "*[02468]"), (2000, "*[05]"), (1_000_000, "*0"))
_SUSTAINED: Final = 0.97
_FINAL_LAG_SECONDS: Final = 1.0
_UPDATE: Final = """\
\\set key {first} + :client_id * {each} + :n % {each}
UPDATE student SET name = :n{filler} WHERE id = :key;"""


class Change(NamedTuple):
    """A change that was acknowledged.

    Attributes:
        key: the row.
        number: what it wrote; grows with every change of the row.
        seconds: time from its schedule to the acknowledgement.
        acknowledged: time of the acknowledgement, in seconds since the epoch.
    """

    key: int
    number: int
    seconds: float
    acknowledged: float


class Writer(Protocol):
    """Sends changes on schedule."""

    async def write(self, rate: int, seconds: float) -> tuple[float, list[Change]]:
        """Send changes at this rate; return how many were acknowledged per second, and these."""


class Sql:
    """Changes rows in SQL, in sessions that do not identify themselves as a service.

    Args:
        dsn: the database.
        rows: number of rows that are changed in turn, from `FIRST` on.
        filler: bytes by which the name of each is made longer.
    """

    def __init__(self, dsn: str, rows: int = ROWS, filler: int = 0) -> None:
        self._dsn = dsn
        self._each = rows // _CLIENTS
        text = f" || repeat(' ', {filler})" if filler else ""
        self._script = _UPDATE.format(first=FIRST, each=self._each, filler=text)

    async def write(self, rate: int, seconds: float) -> tuple[float, list[Change]]:
        """Send UPDATEs at this rate, at random times as they would come from many clients."""
        load = pgbench.Load(self._script, _CLIENTS, seconds, rate, start=_first_number())
        tps, transactions = await pgbench.run(self._dsn, load)
        return tps, [
            Change(
                FIRST + one.client * self._each + (load.start + one.number) % self._each,
                load.start + one.number,
                one.seconds,
                one.ended,
            )
            for one in transactions
        ]


class Put:
    """Changes rows through sa."""

    def __init__(self, port: int) -> None:
        self._client = Client(HOST, port)
        self._failed = 0

    async def write(self, rate: int, seconds: float) -> tuple[float, list[Change]]:
        """Send PUTs at this rate."""
        changes: list[Change] = []
        first = _first_number()

        async def put(number: int, due: float) -> None:
            key = FIRST + number % ROWS
            try:
                answer = await self._client.request(
                    "PUT", f"/students/{key}", b'{"name":"%d","age":20}' % number
                )
            except (OSError, EOFError):  # more concurrent connections than the server accepts
                return
            now = time.time()
            if answer.status == HTTPStatus.OK:
                changes.append(Change(key, number, now - due, now))

        begin, tasks = time.time(), []
        for index in range(round(rate * seconds)):
            due = begin + index / rate
            if (delay := due - time.time()) > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(put(first + index, due)))
        await asyncio.gather(*tasks)
        return len(changes) / (time.time() - begin), changes

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


@dataclass
class Propagation:
    """One run.

    Attributes:
        rate: changes per second that the schedule had.
        achieved: changes per second that were acknowledged.
        acknowledged: seconds from the schedule to the acknowledgement, of each change that got one.
        lags: seconds from the acknowledgement until the change was readable, of each change that was timed;
            30 seconds if it was not readable by then.
        missing: timed changes that were not readable after 30 seconds.
        final: median lag of the last tenth of the run, in seconds.
        usage: CPU time of the run, until the last change was readable.
    """

    rate: int
    achieved: float
    acknowledged: list[float]
    lags: list[float]
    missing: int
    final: float
    usage: Usage = field(default_factory=Usage)

    @property
    def sustained(self) -> bool:
        """Whether the rate was kept up: nearly all changes got through, and lag did not accumulate."""
        # Random times vary the number of changes by the root of it.
        share = _SUSTAINED - 3 / len(self.acknowledged) ** 0.5
        enough = self.achieved >= share * self.rate
        return enough and not self.missing and self.final <= _FINAL_LAG_SECONDS

    def figures(self) -> dict[str, float]:
        """Return the figures of the run by name."""
        count = len(self.acknowledged)
        figures = {
            "acknowledged_share": self.achieved / self.rate,
            "acknowledged_p50_ms": milliseconds(self.acknowledged, 0.5),
            "acknowledged_p99_ms": milliseconds(self.acknowledged, 0.99),
            "p50_ms": milliseconds(self.lags, 0.5),
            "p99_ms": milliseconds(self.lags, 0.99),
            "missing": float(self.missing),
            "sustained": float(self.sustained),
            "cpu_us": 1e6 * self.usage.total() / count,
        }
        return figures | {f"cpu_us.{name}": used for name, used in self.usage.per(count).items()}


async def measure(target: Target, writer: Writer, rate: int, seconds: float) -> Propagation:
    """Send changes at this rate, and time when they become readable in sb's Redis."""
    keys = next(keys for limit, keys in _SAMPLES if rate <= limit)
    async with Watch.watching(target.caches["sb"], keys) as watch:
        with accounting(target.processes) as usage:
            achieved, changes = await writer.write(rate, seconds)
            timed = [change for change in changes if _is_timed(change.key, keys)]
            deadline = time.monotonic() + _LAG_LIMIT_SECONDS
            while _missing(watch, timed) and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
        timed.sort(key=lambda change: change.acknowledged)
        seen = [watch.readable(change.key, change.number) for change in timed]
    lags = [
        _LAG_LIMIT_SECONDS if one is None else max(0.0, one - change.acknowledged)
        for one, change in zip(seen, timed, strict=True)
    ]
    last = lags[-max(1, len(lags) // 10) :]
    return Propagation(
        rate=rate,
        achieved=achieved,
        acknowledged=[change.seconds for change in changes],
        lags=lags,
        missing=seen.count(None),
        final=milliseconds(last, 0.5) / 1000,
        usage=usage,
    )


async def warm_up(target: Target, writer: Writer) -> None:
    """Send a few changes, until all of a second's changes have become readable."""
    deadline = time.monotonic() + 60
    while (await measure(target, writer, 100, 5)).missing:
        assert time.monotonic() < deadline, "changes do not reach sb's Redis"


def _missing(watch: Watch, changes: list[Change]) -> bool:
    # The last are the likeliest, and then nothing else is looked at.
    return any(watch.readable(change.key, change.number) is None for change in reversed(changes))


def _is_timed(key: int, keys: str) -> bool:
    digits = keys.strip("*[]") or "0123456789"
    return str(key % 10) in digits


def _first_number() -> int:
    # Grows faster than any load counts.
    return round(time.time() * 10_000)
