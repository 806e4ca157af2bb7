-- Makes caches right after partitions of an entity were attached or detached. $1 the entity.
SELECT f.emptied, f.failures FROM cachesync.follow_partitions($1) AS f;
