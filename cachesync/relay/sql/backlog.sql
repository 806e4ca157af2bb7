-- The unpublished changes that are due: their number in the first $1 lines; the age of the oldest, in seconds; and the
-- time from which they are due. No line that was due before $2 is unpublished.
SELECT
    coalesce(sum(d.changes), 0)::bigint AS changes,
    coalesce(extract(epoch FROM statement_timestamp() - min(greatest(d.relay_at, d.changed_at))), 0)::float AS age,
    min(d.relay_at) AS first
FROM (
    SELECT l.relay_at, l.changed_at, coalesce(cardinality(l.keys), 1) AS changes
    FROM cachesync.change_log AS l
    WHERE l.published_at IS NULL AND l.relay_at >= $2 AND l.relay_at <= statement_timestamp()
    ORDER BY l.relay_at
    LIMIT $1
) AS d;
