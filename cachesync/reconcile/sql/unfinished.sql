-- The last run with an id that starts with $1 and the parameters $2 that has not ended and is less than a day old.
-- No row if another session has claimed it.
WITH last AS MATERIALIZED (
    SELECT r.run
    FROM cachesync.reconciliation AS r
    WHERE
        starts_with(r.run, $1)
        AND r.parameters = $2::jsonb
        AND r.finished_at IS NULL
        AND r.started_at > clock_timestamp() - interval '1 day'
    ORDER BY r.started_at DESC
    LIMIT 1
)
SELECT l.run FROM last AS l WHERE pg_try_advisory_lock(hashtextextended(l.run, 0));
