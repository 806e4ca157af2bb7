-- The keys of entity $1 that the change log has, the one that changed last first; at most $2 if that is not null.
SELECT r.key
FROM (
    SELECT l.key, l.version
    FROM cachesync.change_log AS l
    WHERE l.entity = $1 AND l.key IS NOT NULL
    UNION ALL
    SELECT k.key, l.version - cardinality(l.keys) + k.position
    FROM cachesync.change_log AS l
    CROSS JOIN unnest(l.keys) WITH ORDINALITY AS k (key, position)
    WHERE l.entity = $1 AND l.operation = 'upserts'
) AS r
GROUP BY r.key
ORDER BY max(r.version) DESC
LIMIT $2;
