-- What an earlier live check has not seen: the open violations, and the oldest change that each cache did not have. `age` is in
-- seconds.
SELECT
    v.service, v.entity, v.key, v.version, v.kind, v.id,
    extract(epoch FROM clock_timestamp() - v.committed_at)::float AS age
FROM cachesync.violation AS v
WHERE v.seen_at IS NULL
UNION ALL
SELECT
    c.service, c.oldest_unseen_entity, c.oldest_unseen_key, c.oldest_unseen_version, 'behind', NULL,
    extract(epoch FROM clock_timestamp() - c.oldest_unseen_at)::float
FROM cachesync.cache_state AS c
WHERE c.oldest_unseen_at IS NOT NULL;
