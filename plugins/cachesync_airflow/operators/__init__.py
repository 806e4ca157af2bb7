"""Operators of the DAGs `dead_letter_retry`, `reconcile` and `stream_check`.

Each performs one task that ends, in a worker, and defines the parameters of its DAG. Work that does not end
runs in `triggers`.
"""
