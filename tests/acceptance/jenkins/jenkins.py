"""A stand-in for Jenkins that builds the unmodified Jenkinsfile and really runs its shell steps."""

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
    """The outcome of a build.

    Attributes:
        result: `SUCCESS`, `UNSTABLE`, `FAILURE` or `ABORTED`.
        description: the build's description, if it has one.
        log: the console log.
        artifacts: the contents of the archived files, by name.
        calls: the steps and blocks that the Jenkinsfile called, in order: `name`, `arguments` except for
            closures, and `depth`.
    """

    result: str
    description: str | None
    log: str
    artifacts: dict[str, str]
    calls: list[dict[str, Any]]

    def inside(self, block: str) -> Iterator[tuple[str, list[Any]]]:
        """Yield the calls in a block of the Jenkinsfile, each with its arguments."""
        start = next(index for index, call in enumerate(self.calls) if call["name"] == block)
        for call in self.calls[start + 1 :]:
            if call["depth"] <= self.calls[start]["depth"]:
                return
            yield call["name"], call["arguments"]


class Jenkins:
    """An agent with one workspace, which all builds share.

    Args:
        folder: directory for the workspace.
        airflow_url: `AIRFLOW_URL` in the environment of all builds.
        username: user name of the credential.
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
        """Return the ID of the DAG run of the build with this tag."""
        return f"{tag}__{self._started}"

    def build(
        self,
        tag: str,
        password: str,
        *,
        parameters: dict[str, str | bool],
        watch: Callable[[str, Callable[[], None]], None] = lambda *_: None,
    ) -> Build:
        """Run a build.

        Args:
            tag: the build's tag; a repeated tag repeats the build.
            password: password of the credential.
            parameters: the parameters that differ from their defaults.
            watch: called with each line of the log and a function that aborts the build.
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
            # The python3 on the system's PATH can be too old.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_URL": self._airflow_url,
            "BUILD_TAG": tag,
        }
