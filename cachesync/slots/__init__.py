"""Slots: the content of a cache, and all access to Redis.

Contains the layout of a slot, the effect of a change on it, the Lua scripts that implement it, and the
clients that run them on one slot at a time (services) or on many at once (background work). Independent of
PostgreSQL and Kafka.
"""
