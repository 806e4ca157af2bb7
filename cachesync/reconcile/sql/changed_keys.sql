-- The keys of the entities $2 whose rows may have changed since $1, in the order of their first change since then,
-- so that later changes are added at the end. Only keys whose first change has a version above $3.
SELECT l.entity, r.key, min(l.version - coalesce(cardinality(l.keys), 1) + r.position) AS version, count(*) OVER () AS total
FROM cachesync.change_log AS l
CROSS JOIN unnest(coalesce(l.keys, ARRAY[l.key])) WITH ORDINALITY AS r (key, position)
WHERE (l.published_at > $1 OR l.published_at IS NULL) AND l.entity = ANY($2::text []) AND r.key IS NOT NULL
GROUP BY l.entity, r.key
HAVING min(l.version - coalesce(cardinality(l.keys), 1) + r.position) > $3
ORDER BY version;
