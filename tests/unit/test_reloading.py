"""Work that follows the entities file."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cachesync import reloading
from cachesync.errors import DeclarationError, StreamError
from cachesync.reloading import ReloadingWork
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from cachesync.entity import Entity

Log = list[tuple[str, list[str]]]


def section(name: str) -> str:
    return f'[{name}]\ntable = "{name}"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/{name}"\n'


class Recorded:
    """Work that records when it runs, and on which entities."""

    def __init__(self, entities: Mapping[str, Entity], log: Log) -> None:
        self._names = list(entities)
        self._log = log
        self._stopped = threading.Event()

    def run(self) -> None:
        self._log.append(("began", self._names))
        self._stopped.wait(30)
        self._log.append(("ended", self._names))

    def stop(self) -> None:
        self._stopped.set()


class Run:
    """Runs such work in a thread.

    Args:
        file: the entities file.
        error: raised when the work is opened again.
    """

    def __init__(self, file: Path, error: Exception | None = None) -> None:
        self.log: Log = []
        self.raised: Exception | None = None
        self._error = error
        self.opened = threading.Event()
        self.may_open = threading.Event()
        self.may_open.set()
        self._work = ReloadingWork(file, self._open)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _open(self, entities: Mapping[str, Entity]) -> Recorded:
        if self.opened.is_set():
            if self._error is not None:
                raise self._error
            self.may_open.wait(30)
        self.opened.set()
        return Recorded(entities, self.log)

    def _run(self) -> None:
        try:
            self._work.run()
        except StreamError as error:
            self.raised = error

    def works_on(self, *names: str) -> None:
        wait_until(lambda: self.log[-1:] == [("began", list(names))], f"work on {names}")

    def stop(self) -> None:
        self._work.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "_LOOK_SECONDS", 0.02)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "entities.toml"
    path.write_text(section("one"), encoding="utf-8")
    return path


@pytest.fixture
def run(file: Path) -> Iterator[Run]:
    run = Run(file)
    yield run
    run.stop()


def test_work_is_opened_again_with_a_new_entity_after_it_has_ended(run: Run, file: Path) -> None:
    run.works_on("one")
    with capture_logs() as logs:
        file.write_text(section("one") + section("two"), encoding="utf-8")
        run.works_on("one", "two")
    assert run.log == [("began", ["one"]), ("ended", ["one"]), ("began", ["one", "two"])]
    assert [(entry["added"], entry["removed"]) for entry in logs] == [(["two"], [])]


def test_file_that_is_replaced_by_another_of_the_same_size_and_time_is_noticed(run: Run, file: Path) -> None:
    run.works_on("one")
    before = file.stat()
    other = file.with_name("other.toml")
    other.write_text(section("two"), encoding="utf-8")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    run.works_on("two")


def test_work_goes_on_while_the_file_is_invalid_or_missing(run: Run, file: Path) -> None:
    run.works_on("one")
    with capture_logs() as logs:
        file.write_text("[two", encoding="utf-8")
        wait_until(lambda: len(logs) == 1, "the mistake is logged")
        file.unlink()
        wait_until(lambda: len(logs) == 2, "the missing file is logged")
    assert [entry["log_level"] for entry in logs] == ["error", "error"]
    assert "is not valid TOML" in logs[0]["error"]
    assert "cannot read the entities file" in logs[1]["error"]
    assert run.log == [("began", ["one"])]
    file.write_text(section("two"), encoding="utf-8")
    run.works_on("two")


def test_work_goes_on_if_the_file_changes_but_declares_the_same(run: Run, file: Path) -> None:
    run.works_on("one")
    file.write_text("# A comment.\n" + section("one"), encoding="utf-8")
    threading.Event().wait(0.2)
    assert run.log == [("began", ["one"])]


def test_file_that_changes_while_work_is_opened_is_noticed(run: Run, file: Path) -> None:
    run.works_on("one")
    run.may_open.clear()
    file.write_text(section("two"), encoding="utf-8")
    wait_until(lambda: run.log[-1] == ("ended", ["one"]), "the work has ended")
    file.write_text(section("three"), encoding="utf-8")
    threading.Event().wait(0.2)
    run.may_open.set()
    run.works_on("three")


def test_work_that_is_stopped_while_it_is_opened_again_ends(file: Path) -> None:
    run = Run(file)
    run.works_on("one")
    run.may_open.clear()
    file.write_text(section("two"), encoding="utf-8")
    wait_until(lambda: run.log[-1] == ("ended", ["one"]), "the work has ended")
    timer = threading.Timer(0.1, run.may_open.set)
    timer.start()
    run.stop()
    assert run.log[2:] in ([], [("began", ["two"]), ("ended", ["two"])])


def test_error_of_work_that_is_opened_again_is_raised(file: Path) -> None:
    run = Run(file, StreamError("cannot continue"))
    run.works_on("one")
    file.write_text(section("two"), encoding="utf-8")
    run.join()
    assert str(run.raised) == "cannot continue"


def test_file_that_is_invalid_from_the_beginning_is_refused(file: Path) -> None:
    file.write_text("[two", encoding="utf-8")
    with pytest.raises(DeclarationError, match="is not valid TOML"):
        Run(file)
