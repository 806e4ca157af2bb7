-- The last look of the live check at each cache, and how long ago it was, in seconds.
SELECT
    s.service, s.checked_at, s.redis, s.problem, s.oldest_unseen_entity, s.oldest_unseen_key, s.oldest_unseen_version,
    extract(epoch FROM clock_timestamp() - s.oldest_unseen_at)::float8 AS oldest_unseen_s
FROM cachesync.cache_state AS s;
