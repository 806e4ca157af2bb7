"""Triggers, which run the stream and the relay in the triggerer."""
