"""The change log, as a query of its changes."""

from __future__ import annotations

from typing import Final

CHANGES: Final = """
(
    SELECT
        l.entity, r.key, l.version - coalesce(cardinality(l.keys), 1) + r.position AS version,
        CASE WHEN l.keys IS NULL THEN l.operation ELSE 'upsert' END AS operation,
        r.payload, l.source, l.changed_at
    FROM cachesync.change_log AS l
    CROSS JOIN unnest(coalesce(l.keys, ARRAY[l.key]), coalesce(l.payloads, ARRAY[l.payload]))
        WITH ORDINALITY AS r (key, payload, position)
)
"""
"""A table expression: the changes in the log, including those of rows that share a line."""
