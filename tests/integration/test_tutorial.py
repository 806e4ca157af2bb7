"""The tutorial: its commands, run as they are written, print what it says."""

from __future__ import annotations

import re
import secrets
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

import redis as redis_client

from local.ports import free_port
from tests.integration.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from local.kafka import Kafka
    from local.postgres import Postgres
    from local.redis import Redis

PAGE = REPOSITORY / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[Kk]eep (?:this|it) as `([^`]+)`")
PORT = "8070"
SECONDS = 60


class Step(NamedTuple):
    """Commands, and what the last of them print; or a file."""

    text: str
    file: str | None = None
    output: str | None = None


def steps() -> Iterator[Step]:
    """Yield what the page asks its reader to do."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(page))
    for number, block in enumerate(blocks):
        language, text = block.groups()
        before = page[blocks[number - 1].end() if number else 0 : block.start()]
        if language == "console":
            following = blocks[number + 1] if number + 1 < len(blocks) else None
            output = (
                following[2]
                if following and following[1] == "text" and not page[block.end() : following.start()].strip()
                else None
            )
            yield Step(
                "".join(line.removeprefix("$ ") for line in text.splitlines(keepends=True)), output=output
            )
        elif language in {"sql", "python"}:
            yield Step(text, file=FILE.findall(before)[-1])


class Shell:
    """A shell in which a reader follows the page.

    Args:
        variables: what the reader's servers are, instead of those that the page names.
        log: receives what is printed on standard error.
    """

    def __init__(self, variables: dict[str, str], log: Path) -> None:
        self._variables = variables
        self._log = log.open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            ["bash"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.run("shopt -s expand_aliases; trap 'exit 1' ERR")

    def run(self, commands: str) -> str:
        """Run commands, and return what they print on standard output."""
        for name, value in self._variables.items():
            commands = re.sub(rf"(?m)^export {name}=.*$", f"export {name}='{value}'", commands)
        mark = secrets.token_hex(8)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{commands}\necho {mark}\n")
        self._process.stdin.flush()
        printed: list[str] = []
        for line in self._process.stdout:
            if line == f"{mark}\n":
                return "".join(printed)
            printed.append(line)
        self._log.seek(0)
        message = f"{commands}\n{self._log.read()}"
        raise AssertionError(message)

    def close(self) -> None:
        """End the shell, which ends what it has started."""
        self._process.communicate("kill $(jobs -p)\n" if self._process.poll() is None else "", 60)
        self._log.close()


def test_commands_of_the_tutorial_print_what_it_says(
    postgres: Postgres, redis_sa: Redis, kafka: Kafka, tmp_path: Path
) -> None:
    server = postgres.dsn.rpartition("/")[0]
    shell = Shell(
        {"SERVER": server, "REDIS_URL": redis_sa.url, "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers},
        tmp_path / "log",
    )
    port = str(free_port())
    outputs = 0
    try:
        for step in steps():
            if step.file is not None:
                (tmp_path / step.file).write_text(step.text, encoding="utf-8")
                continue
            commands = step.text.replace(PORT, port).replace("mkdir -p shop && cd shop", f"cd '{tmp_path}'")
            printed = shell.run(commands)
            deadline = time.monotonic() + SECONDS
            # The change of another may not have arrived yet.
            while step.output is not None and printed != step.output:
                assert time.monotonic() < deadline, (commands, printed, step.output)
                time.sleep(0.1)
                printed = shell.run(commands)
            outputs += step.output is not None
    finally:
        shell.close()
        postgres.sql("DROP DATABASE IF EXISTS shop WITH (FORCE)", "postgres")
        postgres.sql("DROP ROLE IF EXISTS seller", "postgres")
        with redis_client.Redis.from_url(redis_sa.url) as slots:
            slots.flushall()
    assert outputs == 3
