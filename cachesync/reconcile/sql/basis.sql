-- When the last run began that left nothing wrong in a service's cache; $1 the service, $2 the entities. Null
-- as well where lines of the change log since $3 before that run may have been pruned.
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
