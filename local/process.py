"""Child processes that are started, monitored, and stopped together with their descendants."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict

import psutil

from local import guard
from local.errors import CommandError, PortTakenError, ProcessExitedError, StartTimeoutError
from local.ports import require_free
from local.private_file import PRIVATE_UMASK, write_private

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from concurrent.futures import Future

_LOG_LINES = 20


class _Guard:
    """The guard program: runs while there are children, and terminates them if this process is killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[int] = set()
        self._process: subprocess.Popen[str] | None = None

    def add(self, pid: int, stop_signal: signal.Signals) -> None:
        with self._lock:
            if self._process is None:
                # PR_SET_PDEATHSIG is not an option: it is specific to Linux, covers only one process of a
                # tree, and already fires when the thread that started the child ends.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", guard.__file__],
                    stdin=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            self._children.add(pid)
            self._send(self._process, f"add {pid} {stop_signal.value}")

    def remove(self, pid: int) -> None:
        with self._lock:
            if self._process is None:
                return
            self._children.discard(pid)
            self._send(self._process, f"remove {pid}")
            if not self._children:
                self._process.communicate()
                self._process = None

    @staticmethod
    def _send(process: subprocess.Popen[str], line: str) -> None:
        # Popen always creates the pipe that was requested; the check is for the type checker.
        if process.stdin is not None:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()


_guard = _Guard()


class Rights(TypedDict, total=False):
    """The arguments of `subprocess` that set the user to run as."""

    user: int
    group: int
    extra_groups: list[int]


def rights(user: str | None) -> Rights:
    """Return the arguments of `subprocess` to run as this user, or as the current user if None."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def run(
    command: list[str],
    *,
    standard_input: str = "",
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    user: str | None = None,
) -> str:
    """Run a command to completion and return its output.

    Args:
        command: the program and its arguments.
        standard_input: text for its standard input.
        cwd: working directory; None is the current one.
        environment: environment variables; None inherits the caller's.
        user: user to run as; None is the current one.

    Raises:
        CommandError: it exited with an error; the message includes its output.
    """
    result = subprocess.run(
        command,
        input=standard_input,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
        umask=PRIVATE_UMASK,
        **rights(user),
    )
    if result.returncode != 0:
        raise CommandError(Path(command[0]).name, result.stderr or result.stdout)
    return result.stdout


class Process(ABC):
    """A child process with a log, a PID file and a readiness check.

    Args:
        name: name of the process in messages; the log and the PID file are named after it.
        folder: directory of its files, created if missing.
        ports: the ports it listens on, by the names of their settings.
    """

    poll_seconds = 0.05
    start_seconds = 30.0
    stop_seconds = 10.0
    stop_signal = signal.SIGTERM
    #: The user to run as; None is the current one.
    user: str | None = None

    def __init__(self, name: str, folder: Path, ports: Mapping[str, int]) -> None:
        self.name = name
        self.folder = folder
        self.ports = ports
        self.log = folder / f"{name}.log"
        #: How many seconds the last start took until the process was ready.
        self.startup_seconds = 0.0
        self._pid_file = folder / f"{name}.pid"
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        #: Whether it is being stopped or killed on purpose.
        self._ending = False
        #: The offset in the log at which the last start began.
        self._log_start: int | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the program and its arguments."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether the process is ready; polled after the start."""

    def prepare(self) -> None:  # noqa: B027 - most need no preparation
        """Prepare files or other resources that the process needs before it can start."""

    def environment(self) -> dict[str, str]:
        """Return the environment of the process."""
        return dict(os.environ)

    def working_folder(self) -> Path:
        """Return the working directory of the process."""
        return self.folder

    @property
    def pid(self) -> int:
        """The process ID.

        Raises:
            RuntimeError: the process has not been started.
        """
        process = self._process
        if process is None:
            message = f"{self.name} was not started"
            raise RuntimeError(message)
        return process.pid

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not exited."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """The exit status of a process that has exited on its own; None if it is running or was stopped."""
        process = self._process
        return None if process is None or self._ending else process.poll()

    def start(self) -> Self:
        """Start the process and wait until it is ready. If it is already running, do nothing.

        Raises:
            PortTakenError: another program uses one of its ports.
            ProcessExitedError: it exited before it was ready.
            StartTimeoutError: it was not ready after `start_seconds`; it has been killed.
        """
        if self.running:
            return self
        started = time.monotonic()
        self.kill()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._end_leftover()
        require_free(self.ports)
        self.prepare()
        self._spawn()
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise
        self.startup_seconds = time.monotonic() - started
        return self

    def stop(self) -> None:
        """Ask the process to exit; kill what is left of its process tree after at most `stop_seconds`."""
        process = self._process
        if process is None:
            return
        self._ending = True
        members = self.tree()
        process.send_signal(self.stop_signal)
        for member in members:
            _send(member, signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.stop_seconds)
        with self._lock:
            self._kill(members)

    def kill(self) -> None:
        """Kill the process and its descendants immediately (SIGKILL)."""
        self._ending = True
        # A process that is being spawned by another thread is known only after that, and would not be killed.
        with self._lock:
            # A stopped process cannot start another, so the tree is complete before the first one is killed.
            self._kill(self.freeze())

    def _kill(self, members: list[psutil.Process]) -> None:
        # A failing start and a caller that no longer waits for it can get here one after the other.
        if self._process is None:
            return
        for member in members:
            _send(member, signal.SIGKILL)
        self._process.wait()
        _wait_until_gone(members, self.stop_seconds)
        _guard.remove(self._process.pid)
        self._pid_file.unlink(missing_ok=True)
        self._process = None

    def restart(self) -> Self:
        """Stop the process and start it again."""
        self.stop()
        return self.start()

    def freeze(self) -> list[psutil.Process]:
        """Suspend the process and its descendants (SIGSTOP), as if the machine hung, and return them."""
        frozen: list[psutil.Process] = []
        while found := [process for process in self.tree() if process not in frozen]:
            for process in found:
                _send(process, signal.SIGSTOP)
            frozen += found
        return frozen

    def thaw(self) -> None:
        """Resume a frozen process and its descendants (SIGCONT)."""
        for process in self.tree():
            _send(process, signal.SIGCONT)

    def tree(self) -> list[psutil.Process]:
        """Return the process, its descendants, and the remaining members of its process group."""
        process = self._process
        if process is None:
            return []
        found: list[psutil.Process] = []
        # It can exit at any moment, on its own or because of another thread.
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            found = [root, *root.children(recursive=True)]
        found += [member for member in _group(process.pid) if member not in found]
        return found

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> None:
        # One object's starts share the log, so that a test that kills a component can read all of it.
        if self._log_start is None:
            write_private(self.log, "")
        with self._lock, self.log.open("ab") as log:
            self._log_start = log.tell()
            self._ending = False
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.working_folder(),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=PRIVATE_UMASK,
                **rights(self.user),
            )
            pid = self._process.pid
            _guard.add(pid, self.stop_signal)
            write_private(self._pid_file, f"{pid} {psutil.Process(pid).create_time()}\n")

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.start_seconds
        process = self._process
        while not self.ready():
            # None if another thread has killed it.
            if process is None or process.poll() is not None:
                code = process and process.returncode
                message = f"{self.name} exited with status {code} before it was ready"
                raise ProcessExitedError(message, self.log, self._log_end())
            if time.monotonic() > deadline:
                message = f"{self.name} was not ready after {self.start_seconds:.0f} s"
                raise StartTimeoutError(message, self.log, self._log_end())
            time.sleep(self.poll_seconds)
        # Another program can have taken the port after it was found free, and be the one that responds.
        ours = self._listening() if self.ports else set()
        if taken := {name: port for name, port in self.ports.items() if port not in ours}:
            raise PortTakenError(taken)

    def _listening(self) -> set[int]:
        """Return the ports that the process tree listens on; its configured ports if access is denied."""
        ports = set()
        try:
            for member in self.tree():
                with suppress(psutil.NoSuchProcess):
                    connections = member.net_connections("tcp")
                    ports |= {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
        except psutil.AccessDenied:
            # In a container without SYS_PTRACE, even root cannot see the files of another user's processes.
            return set(self.ports.values())
        return ports

    def _log_end(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start or 0)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:]) or "  (empty)"

    def _end_leftover(self) -> None:
        """Kill the process that an earlier, killed run left behind."""
        try:
            pid, created = self._pid_file.read_text().split()
            leftover = psutil.Process(int(pid))
            # Another program can have been given the same process ID.
            if abs(leftover.create_time() - float(created)) < 1:
                members = [leftover, *leftover.children(recursive=True)]
                for member in members:
                    _send(member, signal.SIGKILL)
                _wait_until_gone(members, self.stop_seconds)
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            pass
        self._pid_file.unlink(missing_ok=True)


class Part(Protocol):
    """A component that can be started, stopped and killed."""

    ports: Mapping[str, int]

    def start(self) -> object:
        """Start it and wait until it is ready."""

    def stop(self) -> None:
        """Shut it down cleanly."""

    def kill(self) -> None:
        """Kill it immediately."""


def start_all(parts: Sequence[Part]) -> None:
    """Start the parts in parallel; if one fails to start, kill all of them."""
    with ThreadPoolExecutor(len(parts)) as pool:
        starts = [pool.submit(part.start) for part in parts]
        with killed_unless_started(parts, starts):
            for start in as_completed(starts):
                start.result()


@contextmanager
def killed_unless_started(parts: Collection[Part], starts: Collection[Future[Any]]) -> Iterator[None]:
    """Kill the parts if the block fails, including those whose start in `starts` is still pending."""
    try:
        yield
    except BaseException:
        while True:
            for part in parts:
                part.kill()
            if not wait(starts, timeout=0.2).not_done:
                break
        raise


def stop_all(parts: Sequence[Part]) -> None:
    """Stop the parts in parallel."""
    with ThreadPoolExecutor() as pool:
        stops = [pool.submit(part.stop) for part in parts]
    for stop in stops:
        stop.result()


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _wait_until_gone(processes: list[psutil.Process], seconds: float) -> None:
    # A zombie counts as gone: it waits for its new parent, which can be slow to reap it.
    deadline = time.monotonic() + seconds
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        # A process whose main thread is a zombie keeps its files and ports until its other threads end.
        zombie = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return process.is_running() and not zombie
    except psutil.NoSuchProcess:
        return False


def _group(group: int) -> list[psutil.Process]:
    members = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getpgid(pid) == group:
                members.append(psutil.Process(pid))
    return members
