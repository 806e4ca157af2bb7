-- The age in seconds of the last planned reconciliation if it has no report yet, else 0.
SELECT
    coalesce((
        SELECT
            CASE
                WHEN r.finished_at IS NULL
                    THEN extract(epoch FROM clock_timestamp() - r.started_at)::float8
            END
        FROM cachesync.reconciliation AS r
        ORDER BY r.started_at DESC
        LIMIT 1
    ), 0) AS age;
