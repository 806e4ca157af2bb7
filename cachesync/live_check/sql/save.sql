-- The state of each cache, as columns of arrays. $4 is the age of the oldest change that the cache does not have, in seconds.
INSERT INTO cachesync.cache_state AS c (
    service, checked_at, redis, problem, oldest_unseen_at, oldest_unseen_entity, oldest_unseen_key, oldest_unseen_version,
    keys, memory
)
SELECT
    s.service, clock_timestamp(), s.redis, s.problem, clock_timestamp() - make_interval(secs => s.age), s.entity, s.key,
    s.version, s.keys, s.memory
FROM unnest(
    $1::text [], $2::text [], $3::text [], $4::float [], $5::text [], $6::text [], $7::bigint [], $8::bigint [],
    $9::bigint []
) AS s (service, redis, problem, age, entity, key, version, keys, memory)
ON CONFLICT (service) DO UPDATE SET
checked_at = excluded.checked_at,
redis = excluded.redis,
problem = excluded.problem,
oldest_unseen_at = excluded.oldest_unseen_at,
oldest_unseen_entity = excluded.oldest_unseen_entity,
oldest_unseen_key = excluded.oldest_unseen_key,
oldest_unseen_version = excluded.oldest_unseen_version,
keys = coalesce(excluded.keys, c.keys),
memory = coalesce(excluded.memory, c.memory);
