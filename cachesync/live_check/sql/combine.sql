-- Combines the figures of the minutes of the oldest hour that is more than two days old and has several.
WITH oldest AS (
    SELECT date_trunc('hour', c.minute, 'UTC') AS hour
    FROM cachesync.consistency AS c
    WHERE
        c.minute < date_trunc('hour', statement_timestamp(), 'UTC') - interval '2 days'
        AND c.minute <> date_trunc('hour', c.minute, 'UTC')
    ORDER BY c.minute
    LIMIT 1
), minutes AS (
    DELETE FROM cachesync.consistency AS c
    USING oldest AS o
    WHERE c.minute > o.hour AND c.minute < o.hour + interval '1 hour'
    RETURNING o.hour, c.*
)
INSERT INTO cachesync.consistency AS c (
    minute, service, entity, judged, seen, lags, hits, misses, bypasses
)
SELECT
    m.hour, m.service, m.entity, {{judged}}, {{seen}}, {{lags}}, sum(m.hits), sum(m.misses), sum(m.bypasses)
FROM minutes AS m
GROUP BY m.hour, m.service, m.entity
{{add}};
