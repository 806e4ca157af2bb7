"""The stream: consumes changes and applies them to one service's cache.

Runs in the DAG `cache_sync`. It decides when offsets are committed, when to pause and when to give up; what a
change does to a slot is decided in `slots`.
"""
