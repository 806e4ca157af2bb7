-- Run $1, and how long it has taken.
SELECT
    r.parameters,
    r.notes,
    r.started_at,
    extract(epoch FROM coalesce(r.finished_at, clock_timestamp()) - r.started_at)::float8 AS seconds
FROM cachesync.reconciliation AS r
WHERE r.run = $1;
