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
