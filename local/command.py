"""The project's own command, run as a user would."""

from __future__ import annotations

import os
import sys

from local.process import run
from local.settings import REPOSITORY

#: The entities file of the sample.
ENTITIES = str(REPOSITORY / "entities.toml")


def cachesync(*command: str, **environment: str) -> None:
    """Run `cachesync` with the sample's entities."""
    variables = os.environ | {"CACHESYNC_ENTITIES": ENTITIES} | environment
    run([sys.executable, "-m", "cachesync", *command], cwd=REPOSITORY, environment=variables)
