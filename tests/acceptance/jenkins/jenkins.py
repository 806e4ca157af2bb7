"""A stand-in for Jenkins: it builds the Jenkinsfile as it is, and the shell steps really run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local.settings import REPOSITORY
from local.tools import fetch_jars, require_java

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JENKINSFILE = REPOSITORY / "jenkins-job" / "Jenkinsfile"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Build:
    """What is left of a build.

    Attributes:
        calls: what the Jenkinsfile called, in order: `name`, `arguments` without blocks, and `depth`

    """

    result: str
    description: str | None
    log: str
    artifacts: dict[str, str]
    calls: list[dict[str, Any]]

    def inside(self, block: str) -> Iterator[tuple[str, list[Any]]]:
        """The calls in a block of the Jenkinsfile, each with its arguments."""
        start = next(index for index, call in enumerate(self.calls) if call["name"] == block)
        for call in self.calls[start + 1 :]:
            if call["depth"] <= self.calls[start]["depth"]:
                return
            yield call["name"], call["arguments"]


class Jenkins:
    """One agent with one workspace, which builds share.

    Arguments:
        folder: where the workspace is made
        airflow_url: the address in the environment of all builds
        username: the credential's

    """

    def __init__(self, folder: Path, airflow_url: str, username: str) -> None:
        self.workspace = folder / "workspace"
        checkout = self.workspace / JENKINSFILE.parent.name
        shutil.copytree(JENKINSFILE.parent, checkout, ignore=shutil.ignore_patterns("__pycache__"))
        self._folder = folder
        self._airflow_url = airflow_url
        self._username = username
        self._started = time.time_ns() // 1_000_000
        jars = fetch_jars(REPOSITORY / ".local" / "jenkins", _HERE / "pom.xml")
        options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{jars}/*"]
        self._command = [require_java(), *options, "groovy.ui.GroovyMain", str(_HERE / "runner.groovy")]

    def run_id(self, tag: str) -> str:
        """The name of the DAG run of the build with this tag."""
        return f"{tag}__{self._started}"

    def build(
        self,
        tag: str,
        password: str,
        *,
        parameters: dict[str, str | bool],
        watch: Callable[[str, Callable[[], None]], None] = lambda *_: None,
    ) -> Build:
        """Build it.

        Arguments:
            tag: the build's tag; the same again is the same build again
            password: the credential's
            parameters: those that are not left as they are
            watch: is told of each line of the log, and given what aborts the build

        """
        archive = self._folder / "archive" / str(time.time_ns())
        archive.mkdir(parents=True)
        ending = archive.with_suffix(".json")
        given = {
            "jenkinsfile": str(JENKINSFILE),
            "workspace": str(self.workspace),
            "archive": str(archive),
            "ending": str(ending),
            "started": self._started,
            "environment": self._environment(tag),
            "parameters": parameters,
            "credentials": {"airflow-reconciler": {"username": self._username, "password": password}},
        }
        log = []
        with subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            send = process.stdin.write

            def abort() -> None:
                send("abort\n")

            try:
                send(f"{json.dumps(given)}\n")
                for line in process.stdout:
                    log.append(line)
                    watch(line, abort)
            except BaseException:
                process.kill()
                raise
        text = "".join(log)
        assert process.returncode == 0, text
        artifacts = {file.name: file.read_text(encoding="utf-8") for file in archive.iterdir()}
        return Build(log=text, artifacts=artifacts, **json.loads(ending.read_text(encoding="utf-8")))

    def _environment(self, tag: str) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            # A python3 that is new enough.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_URL": self._airflow_url,
            "BUILD_TAG": tag,
        }
