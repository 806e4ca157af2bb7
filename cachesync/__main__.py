"""`python -m cachesync`."""

from cachesync.cli.main import app

app()
