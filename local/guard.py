"""Ends the children of a program that died without ending them.

It runs as a program of its own, reads one line per child from its standard input ("add PID SIGNAL" or
"remove PID"), and ends what is left when that input closes: however the parent died, its end of the pipe
closes. Each child leads a process group.
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
    """Keep the list of children, then end them."""
    groups: dict[int, int] = {}
    for line in sys.stdin:
        verb, pid, *rest = line.split()
        if verb == "add":
            groups[int(pid)] = int(rest[0])
        else:
            groups.pop(int(pid), None)
    for group, number in groups.items():
        # A frozen process takes its signal only once it goes on.
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
