-- When the last reconciliation of each service ended that has a report, in seconds since 1970, and what it found.
SELECT DISTINCT ON (s.service)
    s.service, extract(epoch FROM r.finished_at)::float8 AS finished_at, s.entities
FROM cachesync.reconciliation AS r
CROSS JOIN LATERAL jsonb_each(r.report -> 'services') AS s (service, entities)
WHERE r.finished_at IS NOT NULL
ORDER BY s.service, r.finished_at DESC;
