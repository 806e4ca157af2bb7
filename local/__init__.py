"""Runs the whole system on one machine without containers, for development, tests and CI."""
