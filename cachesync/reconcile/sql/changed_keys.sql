-- The keys of the entities $2 whose rows may have changed since $1, in the order of their first change since then,
-- so that later changes are added at the end. Only keys whose first change has a version above $3.
SELECT r.entity, r.key, min(r.version) AS version, count(*) OVER () AS total
FROM (
    SELECT l.entity, l.key, l.version
    FROM cachesync.change_log AS l
    WHERE (l.published_at > $1 OR l.published_at IS NULL) AND l.entity = ANY($2::text []) AND l.key IS NOT NULL
    UNION ALL
    SELECT l.entity, k.key, l.version - cardinality(l.keys) + k.position
    FROM cachesync.change_log AS l
    CROSS JOIN unnest(l.keys) WITH ORDINALITY AS k (key, position)
    WHERE (l.published_at > $1 OR l.published_at IS NULL) AND l.entity = ANY($2::text []) AND l.operation = 'upserts'
) AS r
GROUP BY r.entity, r.key
HAVING min(r.version) > $3
ORDER BY version;
