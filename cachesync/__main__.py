"""`python -m cachesync`."""

from cachesync.cli import app

app()
