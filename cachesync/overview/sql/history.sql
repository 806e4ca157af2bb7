-- What the live check has seen in the last $1, by service and periods of $2, of service $3 and entity $4; null for all.
-- If $5, each entity by itself.
SELECT
    c.service, CASE WHEN $5::boolean THEN c.entity ELSE $4 END AS entity, date_bin($2::interval, c.minute, 'epoch') AS at,
    sum(c.judged[2])::bigint AS judged, sum(c.seen[2])::bigint AS seen,
    {{lags}} AS lags,
    sum(c.hits)::bigint AS hits, sum(c.hits + c.misses + c.bypasses)::bigint AS reads
FROM cachesync.consistency AS c
WHERE
    c.minute > now() - $1::interval
    AND ($3::text IS NULL OR c.service = $3)
    AND ($4::text IS NULL OR c.entity = $4)
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3;
