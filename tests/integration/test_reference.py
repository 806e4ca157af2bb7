"""The examples on the pages about the library, run as a user would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from local.postgres import address

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesync import ServiceSettings

REPOSITORY = Path(__file__).parents[2]


def block(page: str, language: str) -> str:
    """The first code block of a page in this language."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("page", ["reference.md", "library.md"])
def test_the_example_prints_what_the_page_says(
    settings_of: Callable[..., ServiceSettings], sample: str, tmp_path: Path, page: str
) -> None:
    example = tmp_path / "example.py"
    example.write_text(block(page, "python"), encoding="utf-8")
    settings = settings_of("sa")
    password = settings.db_password.get_secret_value()
    dsn = address(sample, database=settings.db_name, user=settings.db_username, password=password)
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "CACHESYNC_ENTITIES": str(settings.cachesync_entities),
        "DB_HOST": settings.db_host,
        "DB_PORT": str(settings.db_port),
        "DB_NAME": settings.db_name,
        "DB_USERNAME": settings.db_username,
        "DB_PASSWORD": password,
        "DATABASE_URL": dsn.replace("postgresql://", "postgresql+asyncpg://"),
        "REDIS_URL": settings.redis_url,
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
    }
    ended = subprocess.run(
        [sys.executable, "-W", "error", example],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.stdout, ended.stderr) == (block(page, "text"), "")
