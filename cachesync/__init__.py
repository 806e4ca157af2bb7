"""Keeps the caches of several services in step with the PostgreSQL that they share."""
