-- What waits for the relay, counted up to $1 lines, for how long, in seconds, and where it begins; $2 before
-- which time nothing waits.
SELECT
    count(*) AS lines,
    coalesce(extract(epoch FROM statement_timestamp() - min(greatest(d.relay_at, d.changed_at))), 0)::float AS age,
    min(d.relay_at) AS first
FROM (
    SELECT l.relay_at, l.changed_at
    FROM cachesync.change_log AS l
    WHERE l.published_at IS NULL AND l.relay_at >= $2 AND l.relay_at <= statement_timestamp()
    ORDER BY l.relay_at
    LIMIT $1
) AS d;
