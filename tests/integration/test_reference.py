"""The example on the reference page, run as a user would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesync import ServiceSettings

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "reference.md"


def block(language: str) -> str:
    """The page's only code block in this language."""
    page = PAGE.read_text(encoding="utf-8")
    code: str
    [code] = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return code


def test_the_example_prints_what_the_page_says(
    settings_of: Callable[..., ServiceSettings], tmp_path: Path
) -> None:
    example = tmp_path / "example.py"
    example.write_text(block("python"), encoding="utf-8")
    settings = settings_of("sa")
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "CACHESYNC_ENTITIES": str(settings.cachesync_entities),
        "DB_HOST": settings.db_host,
        "DB_PORT": str(settings.db_port),
        "DB_NAME": settings.db_name,
        "DB_USERNAME": settings.db_username,
        "DB_PASSWORD": settings.db_password.get_secret_value(),
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
    assert (ended.stdout, ended.stderr) == (block("text"), "")
