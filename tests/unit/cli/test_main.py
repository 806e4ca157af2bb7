"""The command itself, apart from what its subcommands do."""

from __future__ import annotations

from typer.testing import CliRunner

import cachesync
from cachesync.cli.main import app


def test_the_version_is_printed_whatever_else_is_given() -> None:
    for arguments in (["--version"], ["--version", "install"]):
        ended = CliRunner().invoke(app, arguments)
        assert (ended.exit_code, ended.stdout) == (0, "cachesync 0.1.0\n")
    assert cachesync.__version__ == "0.1.0"


def test_without_a_subcommand_the_help_lists_them() -> None:
    ended = CliRunner().invoke(app, [])
    assert "create-topics" in ended.output
    assert "Keep Redis caches consistent with PostgreSQL." in ended.output


def test_help_wraps_only_at_the_width_of_the_terminal() -> None:
    ended = CliRunner().invoke(app, ["reconcile", "--help"], env={"COLUMNS": "200"})
    assert "1 if the command could not run, 3 if something could not be repaired." in ended.output


def test_help_names_the_argument_of_show_as_that_of_the_other_commands() -> None:
    assert "[OPTIONS] {LETTER}" in CliRunner().invoke(app, ["dead-letters", "show", "--help"]).output
