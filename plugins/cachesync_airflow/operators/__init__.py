"""Operators of the DAGs `dead_letter_retry` and `reconcile`."""
