-- The keys whose rows may have changed since $1, of the entities $2, in the order of their first change since
-- then: a change that comes later comes behind. $3 the version of the last that is not asked for.
SELECT l.entity, l.key, min(l.version) AS version, count(*) OVER () AS total
FROM cachesync.change_log AS l
WHERE (l.published_at > $1 OR l.published_at IS NULL) AND l.entity = ANY($2::text []) AND l.key IS NOT NULL
GROUP BY l.entity, l.key
HAVING min(l.version) > $3
ORDER BY min(l.version);
