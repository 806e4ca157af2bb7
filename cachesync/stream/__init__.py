"""The stream: consumes changes and applies them to one service's cache.

It runs in the DAG `cache_sync` and decides when to commit offsets, when to pause and when to give up. What a
change does to a slot is decided in `cachesync.slots`.
"""
