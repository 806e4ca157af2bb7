-- The start of the last run that left no drift in the cache of service $1 for the entities $2. Only runs count
-- for which no line of the change log that was published later than $3 before the start can have been pruned.
SELECT r.started_at
FROM cachesync.reconciliation AS r
WHERE
    r.report ->> 'outcome' IN ('clean', 'repaired')
    AND r.parameters -> 'services' ? $1
    AND r.parameters -> 'entities' ?& $2::text []
    AND r.started_at - $3::interval >= (
        SELECT l.published_at
        FROM cachesync.change_log AS l
        WHERE l.published_at IS NOT NULL
        ORDER BY l.version
        LIMIT 1
    )
ORDER BY r.started_at DESC
LIMIT 1;
