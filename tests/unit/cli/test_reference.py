"""What the documentation says of the commands, their options and their exit status; and shell completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.cli import app as typer_app
from typer.main import get_command
from typer.testing import CliRunner

from cachesync.cli.main import app

DOCS = Path(__file__).parents[3] / "docs"


def commands() -> set[str]:
    """The names of all commands, such as `dead-letters list`."""
    names = set()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        names |= {name} if below is None else {f"{name} {one}" for one in below}
    return names


def test_reference_is_what_the_help_says() -> None:
    arguments = ["cachesync.cli.main", "utils", "docs", "--name", "cachesync", "--title", "Commands"]
    written = CliRunner().invoke(typer_app, arguments)
    assert written.exit_code == 0
    assert written.output.removesuffix("\n") == (DOCS / "commands.md").read_text(encoding="utf-8"), (
        "run `make commands`"
    )


def test_exit_status_of_every_command_is_in_the_table() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    section = page.partition("## Exit status\n")[2].partition("\n## ")[0]
    named = {
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    }
    assert named == commands()


def test_command_with_a_status_of_its_own_says_so_in_its_help() -> None:
    table = (DOCS / "cli.md").read_text(encoding="utf-8").splitlines()
    special = [line for line in table if line.startswith("| `") and line.count(" | ") == 3]
    for line in special:
        names, *_, status = (cell.strip(" |") for cell in line.split(" | "))
        if status in {"", "never"}:
            continue
        for name in re.findall(r"`([^`]+)`", names):
            shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
            assert "3 if " in shown.output, name


def test_shells_complete_commands() -> None:
    # Outside pytest, because the completion ends the process.
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'cachesync'; from cachesync.cli.main import app; app()",
        ],
        env={
            **os.environ,
            "_CACHESYNC_COMPLETE": "complete_bash",
            "COMP_WORDS": "cachesync do",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, ["doctor"], "")


def test_json_can_be_had_from_every_command_with_output_to_process() -> None:
    # Their output is a file, the document itself, or a log.
    others = {"init", "stream", "relay", "live-check", "watch", "dead-letters show"}
    for name in commands() - others:
        command: Any = get_command(app)
        for part in name.split():
            command = command.commands[part]
        assert any("--json" in parameter.opts for parameter in command.params), name
