"""The migrations. After each, run `cachesync install`."""
