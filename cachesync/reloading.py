"""Work that follows the entities file, so that a new entity needs no restart."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from cachesync.entity import load_entities
from cachesync.errors import DeclarationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachesync.entity import Entity
    from cachesync.work import Work

_log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 1.0

_Stamp = tuple[int, int, int]


class ReloadingWork:
    """Work on the declared entities, which is opened again when the entities file declares others.

    While the file is missing or invalid, the work goes on with the entities that it has.

    Args:
        path: the entities file.
        open_work: creates the work on the declared entities.

    Raises:
        DeclarationError: the file is missing or invalid.
    """

    def __init__(self, path: str | Path, open_work: Callable[[Mapping[str, Entity]], Work]) -> None:
        self._path = Path(path)
        self._open_work = open_work
        self._read_at = self._stamp()
        # What the file declares, and those of the current work.
        self._declared = self._entities = load_entities(path)
        self._work = open_work(self._entities)
        self._changing = threading.Lock()
        self._stopping = False

    def run(self) -> None:
        """Work until `stop` is called."""
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,), name="entities", daemon=True)
        watcher.start()
        try:
            self._work.run()
            while not self._stopping and self._entities is not self._declared:
                self._open_again()
                self._work.run()
        finally:
            ended.set()
            watcher.join()

    def stop(self) -> None:
        """Make `run` return soon. Can be called from any thread."""
        self._stopping = True
        self._work.stop()

    def _open_again(self) -> None:
        entities = self._declared
        work = self._open_work(entities)
        with self._changing:
            self._entities, self._work = entities, work
        # The call of `stop` may have stopped the former work.
        if self._stopping:
            work.stop()

    def _watch(self, ended: threading.Event) -> None:
        seen = self._read_at
        while not ended.wait(_LOOK_SECONDS):
            stamp = self._stamp()
            # A file that has just changed may be incomplete.
            if stamp == seen != self._read_at:
                self._read_at = stamp
                self._read()
            seen = stamp
            with self._changing:
                if self._entities is not self._declared:
                    self._work.stop()

    def _stamp(self) -> _Stamp | None:
        """Return what changes with the content of the file; None if it cannot be read."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> None:
        try:
            entities = load_entities(self._path)
        except DeclarationError as error:
            _log.error("entities file is invalid, work goes on with its former content", error=str(error))
            return
        if entities != self._declared:
            _log.info(
                "entities changed",
                added=sorted(entities.keys() - self._declared),
                removed=sorted(self._declared.keys() - entities),
            )
            self._declared = entities
