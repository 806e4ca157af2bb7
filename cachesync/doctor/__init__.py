"""Examining an installation: what is wrong with its servers and settings, and what to do about it.

This package finds and explains; it changes nothing. The rules that other packages enforce are asked of them,
such as what an installation requires of a table, or a stream of its consumer.
"""
