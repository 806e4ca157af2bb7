-- What the live check has seen in the last $1, by service and entity.
SELECT
    c.service, c.entity,
    ARRAY[sum(c.judged[1]), sum(c.judged[2]), sum(c.judged[3]), sum(c.judged[4])]::bigint [] AS judged,
    ARRAY[sum(c.seen[1]), sum(c.seen[2]), sum(c.seen[3]), sum(c.seen[4])]::bigint [] AS seen,
    {{lags}} AS lags,
    sum(c.hits)::bigint AS hits, sum(c.misses)::bigint AS misses, sum(c.bypasses)::bigint AS bypasses
FROM cachesync.consistency AS c
WHERE c.minute > now() - $1::interval
GROUP BY c.service, c.entity;
