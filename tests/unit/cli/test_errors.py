"""Mistakes in the arguments."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cachesync.cli.main import app


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["reconsile"], "No such command 'reconsile'. Did you mean 'reconcile'?; see"),
        (["dead-letters", "lst"], "No such command 'lst'. Did you mean 'list'?; see"),
        (["install", "--dsm", "x"], "No such option: --dsm (Possible options: --dsn); see"),
        (["create-topics"], "Missing option '--bootstrap-servers'"),
        (
            ["create-topics", "--bootstrap-servers", "b", "--partitions", "0"],
            "Invalid value for '--partitions': must be at least 1; see",
        ),
        (
            ["create-topics", "--bootstrap-servers", "b", "--partitions", "9" * 30],
            "Invalid value for '--partitions': must be at most 100000; see",
        ),
        (
            ["create-topics", "--bootstrap-servers", "b", "--replication", "two"],
            "Invalid value for '--replication': must be an integer; see",
        ),
        (
            ["dead-letters", "list", "--bootstrap-servers", "b", "--topic", "parking"],
            "Invalid value for '--topic': 'parking' is not one of 'dead-letters', 'parking-lot'; see",
        ),
        (
            ["dead-letters", "replay", "--bootstrap-servers", "b", "--rate", "nan"],
            "Invalid value for '--rate': must be at most 1000000; see",
        ),
        (
            ["stream", "--service", "S_b", "--redis-url", "redis://h", "--bootstrap-servers", "b"],
            "Invalid value for '--service': must be the name of a service: a lowercase letter, then",
        ),
        (
            ["relay", "--bootstrap-servers", "b", "--metrics-port", "70000"],
            "Invalid value for '--metrics-port' (env var: 'METRICS_PORT'): must be at most 65535; see",
        ),
        (["reconcile", "--rate", "0"], "Invalid value for '--rate': must be at least 1; see"),
    ],
)
def test_mistake_in_the_arguments_is_one_line_in_words(arguments: list[str], text: str) -> None:
    ended = CliRunner().invoke(app, arguments, env={"KAFKA_BOOTSTRAP_SERVERS": None, "COLUMNS": "40"})
    assert ended.exit_code == 2
    (line,) = ended.output.splitlines()
    assert line.startswith(f"cachesync: {text}")
    assert line.endswith(" --help")
