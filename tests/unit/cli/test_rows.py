"""Rows of output in a pipe and in terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from cachesync.cli.rows import print_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS: Final[list[dict[str, Any]]] = [
    {
        "letter": "dead-letters:0:1234567",
        "service": "sb",
        "key": "7",
        "version": None,
        "not before": "2026-01-02T03:04:05Z",
        "error": "WRONGTYPE Operation against a key holding the wrong kind of value, which is a long text",
    },
    {
        "letter": "parking-lot:0:17",
        "service": "a-service-with-a-long-name",
        "key": "line\nbreak \x1b[31m",
        "version": 20,
        "not before": "2026-01-02T03:04:05Z",
        "error": "no row version",
    },
]


def printed(capsys: pytest.CaptureFixture[str], rows: Sequence[dict[str, Any]] = ROWS) -> list[str]:
    print_rows(rows, title="letter")
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", ["40", "80", "250"])
def test_in_a_pipe_each_row_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    header, first, second = printed(capsys)
    assert header.split() == ["letter", "service", "key", "version", "not", "before", "error"]
    assert first.endswith("which is a long text")
    assert first.index("WRONGTYPE") == header.index("error") == second.index("no row version")
    assert "line\\nbreak \\x1b[31m" in second


def test_in_a_narrow_terminal_a_row_is_a_paragraph_and_its_title_is_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys)
    assert max(map(len, lines)) <= 80
    assert lines[0].rstrip() == "dead-letters:0:1234567"
    text = " ".join(" ".join(lines).split())
    assert "service sb, key 7, not before 2026-01-02T03:04:05Z, error WRONGTYPE Operation against a" in text
    assert (
        "parking-lot:0:17 service a-service-with-a-long-name, key line\\nbreak \\x1b[31m, version 20" in text
    )
    monkeypatch.setenv("COLUMNS", "20")
    assert "dead-letters:0:1234567" in printed(capsys)


def test_in_a_wide_terminal_rows_are_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "250")
    assert len(printed(capsys)) == 1 + len(ROWS)


def test_no_rows_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, []) == []
