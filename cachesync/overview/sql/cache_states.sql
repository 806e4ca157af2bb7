-- The last look of the live check at each cache, for how long the oldest change has been unseen, in seconds, and the slots with
-- other content than their rows, of which no change tells. Of a live check that no longer looks, nobody knows.
SELECT
    s.service, s.checked_at, s.oldest_unseen_entity, s.oldest_unseen_key, s.oldest_unseen_version,
    CASE
        WHEN s.checked_at > clock_timestamp() - interval '30 seconds'
            THEN extract(epoch FROM clock_timestamp() - s.oldest_unseen_at)::float8
    END AS oldest_unseen_s,
    o.slots AS stale_slots, o.entity AS stale_entity, o.key AS stale_key
FROM cachesync.cache_state AS s
LEFT JOIN LATERAL (
    SELECT v.entity, v.key, count(*) OVER () AS slots
    FROM cachesync.violation AS v
    WHERE
        v.service = s.service AND v.kind = 'stale' AND v.seen_at IS NULL
        AND s.checked_at > clock_timestamp() - interval '30 seconds'
    ORDER BY v.id
    LIMIT 1
) AS o ON true;
