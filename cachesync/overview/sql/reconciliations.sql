-- The last $1 runs of the reconciliation, the newest first; of each service what was found, by entity.
SELECT
    r.run, r.started_at, r.finished_at, r.link, r.parameters, r.report -> 'services' AS services
FROM cachesync.reconciliation AS r
ORDER BY r.started_at DESC
LIMIT $1;
