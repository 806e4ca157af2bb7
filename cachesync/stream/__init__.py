"""The stream: consumes changes and applies them to one service's cache.

It runs in the DAG `cache_sync` and decides when to commit offsets, when to pause and when to give up.
`cachesync.slots` decides what a change does to a slot.
"""
