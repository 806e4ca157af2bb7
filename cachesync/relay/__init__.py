"""The outbox relay: publishes the changes that their writers have not published.

It runs in the DAG `outbox_relay`, measures the backlog, and removes old published lines from the change log.
It never touches a cache.
"""
