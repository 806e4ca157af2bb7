"""Runs the `cachesync` command as a user would."""

from __future__ import annotations

import os
import sys

from local.process import run
from local.settings import REPOSITORY

#: The sample's entities file.
ENTITIES = str(REPOSITORY / "entities.toml")


def cachesync(*command: str, **environment: str) -> None:
    """Run `cachesync` with the sample's entities.

    Args:
        command: the subcommand and its arguments.
        environment: additional environment variables.

    Raises:
        CommandError: the command failed.
    """
    variables = os.environ | {"CACHESYNC_ENTITIES": ENTITIES} | environment
    run([sys.executable, "-m", "cachesync", *command], cwd=REPOSITORY, environment=variables)
