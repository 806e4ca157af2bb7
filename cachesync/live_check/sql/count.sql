-- Adds to the counts of this minute, as columns of arrays. The counts that are arrays themselves are given as their text.
INSERT INTO cachesync.consistency AS c (
    minute, service, entity, judged, seen, lags, hits, misses, bypasses
)
SELECT
    date_trunc('minute', clock_timestamp()), n.service, n.entity, n.judged::bigint [], n.seen::bigint [],
    n.lags::bigint [], n.hits, n.misses, n.bypasses
FROM unnest(
    $1::text [], $2::text [], $3::text [], $4::text [], $5::text [], $6::bigint [], $7::bigint [], $8::bigint []
) AS n (service, entity, judged, seen, lags, hits, misses, bypasses)
{{add}};
