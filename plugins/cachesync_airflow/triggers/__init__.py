"""Triggers, which run the stream and the relay in the triggerer.

Each works in its own thread, so that it does not delay other triggers, and ends when it is canceled. The work
itself is in `cachesync.stream` and `cachesync.relay`.
"""
