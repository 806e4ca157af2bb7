"""Restarts components that exit on their own, and says so."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Self

from cachesync.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from local.process import Process

_POLL_SECONDS: Final = 0.2
_KILL_SECONDS: Final = 0.2
_BACKOFF: Final = Backoff(first=2, longest=60, jitter=0)
# After a restart, a component that has run for this long counts as healthy again.
_HEALTHY_SECONDS: Final = 60.0


class Supervisor:
    """Restarts processes that exit on their own, but not those that were stopped or killed on purpose.

    A process that keeps exiting is restarted with a growing delay.

    Args:
        processes: the running processes.
        console: receives a line for each exit, and for each restart that failed or succeeded.
        backoff: the delay before each restart after the first.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        console: Console,
        backoff: Backoff = _BACKOFF,
    ) -> None:
        self._console = console
        self._backoff = backoff
        self._stopping = threading.Event()
        self._watches = {
            process: threading.Thread(target=self._watch, args=(process,), name=f"supervisor-{process.name}")
            for process in processes
        }
        self._starting: set[Process] = set()

    def __enter__(self) -> Self:
        for thread in self._watches.values():
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for process, thread in self._watches.items():
            while thread.is_alive():
                # A restart can take minutes; the caller stops everything now.
                if process in self._starting:
                    process.kill()
                thread.join(_KILL_SECONDS)

    def _watch(self, process: Process) -> None:
        failures = 0
        started_at = time.monotonic()
        while not self._stopping.wait(_POLL_SECONDS):
            if (status := process.exit_status) is None:
                continue
            if time.monotonic() - started_at > _HEALTHY_SECONDS:
                failures = 0
            self._print(f"{process.name} exited with status {status}; see {process.log}")
            while not self._stopping.is_set():
                if failures and self._wait(process, failures):
                    return
                failures += 1
                if self._restart(process):
                    break
            started_at = time.monotonic()

    def _wait(self, process: Process, failures: int) -> bool:
        """Wait before the next restart; return whether the system stops."""
        delay = self._backoff.delay(failures)
        self._print(f"{process.name} was restarted {_times(failures)} already; next restart in {delay:g} s")
        return self._stopping.wait(delay)

    def _restart(self, process: Process) -> bool:
        self._starting.add(process)
        try:
            process.start()
        # Whatever the reason, such as a full disk or a lost file, a later restart can succeed.
        except Exception as error:  # noqa: BLE001
            if not self._stopping.is_set():
                self._print(f"{process.name} was not restarted: {error}")
            return False
        finally:
            self._starting.discard(process)
        self._print(f"{process.name} was restarted in {process.startup_seconds:.1f} s")
        return True

    def _print(self, line: str) -> None:
        self._console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
