"""The outbox relay: publishes the changes that their writers have not published.

Runs in the DAG `outbox_relay`. It also measures the backlog and removes published lines from the change log.
It never touches a cache.
"""
