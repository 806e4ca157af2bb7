"""Reconciliation: finds and repairs drift between a service's cache and the database.

It runs in the DAG `reconcile` and from the command line, while writes continue. It reads the cache, then the
database, and repairs by compare-and-set. It never fills an empty slot.
"""
