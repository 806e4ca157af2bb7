"""Terminates the children of a program that died without stopping them.

Runs as a separate program. It reads one line per child from standard input, "add PID SIGNAL" or "remove PID",
and terminates the remaining children when standard input closes, which happens however the parent dies.
Each child leads a process group.
"""

import os
import signal
import sys
import time
from contextlib import suppress

GRACE_SECONDS = 5.0


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Track the children until standard input closes, then terminate them."""
    groups: dict[int, int] = {}
    for line in sys.stdin:
        verb, pid, *rest = line.split()
        if verb == "add":
            groups[int(pid)] = int(rest[0])
        else:
            groups.pop(int(pid), None)
    for group, number in groups.items():
        # A stopped process handles the signal only after it is continued.
        if _signal_group(group, number):
            _signal_group(group, signal.SIGCONT)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(_signal_group(group, 0) for group in groups):
        time.sleep(0.05)
    for group in groups:
        _signal_group(group, signal.SIGKILL)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
