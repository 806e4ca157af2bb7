"""Triggers, which run the stream and the relay in the triggerer.

Each works in its own thread, so that it does not delay other triggers. It ends when it is canceled, and when
its run hands over to the next one, whose trigger continues the work. The work itself is in `cachesync.stream`
and `cachesync.relay`.
"""
