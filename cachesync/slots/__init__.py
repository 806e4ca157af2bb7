"""Slots: what a cache holds for each row, and every access to a Redis.

The layout of a slot, what a change does to it, and the Lua scripts that carry it out live here, with the
clients that run them one slot at a time (services) or many at once (background work). Nothing here knows
PostgreSQL or Kafka.
"""
