-- The keys of the entities $2 whose rows may have changed since $1, in the order of their first change since then,
-- so that later changes are added at the end. Only keys whose first change has a version above $3.
SELECT l.entity, l.key, min(l.version) AS version, count(*) OVER () AS total
FROM cachesync.change_log AS l
WHERE (l.published_at > $1 OR l.published_at IS NULL) AND l.entity = ANY($2::text []) AND l.key IS NOT NULL
GROUP BY l.entity, l.key
HAVING min(l.version) > $3
ORDER BY min(l.version);
