"""Filling the slots of a cache from the database, before they are read."""
