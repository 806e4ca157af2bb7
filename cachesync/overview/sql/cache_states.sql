-- The last look of the live check at each cache, and for how long the oldest change has been unseen, in seconds. Of a live check
-- that no longer looks, nobody knows.
SELECT
    s.service, s.checked_at, s.oldest_unseen_entity, s.oldest_unseen_key, s.oldest_unseen_version,
    CASE
        WHEN s.checked_at > clock_timestamp() - interval '30 seconds'
            THEN extract(epoch FROM clock_timestamp() - s.oldest_unseen_at)::float8
    END AS oldest_unseen_s
FROM cachesync.cache_state AS s;
