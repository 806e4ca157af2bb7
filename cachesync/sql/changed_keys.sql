-- The keys whose rows may have changed since $1, of the entities $2.
SELECT DISTINCT l.entity, l.key
FROM cachesync.change_log AS l
WHERE (l.published_at > $1 OR l.published_at IS NULL) AND l.entity = ANY($2::text []) AND l.key IS NOT NULL;
