-- Changes of entity $1 that may still be in flight to the caches: those that were just published, and those that have
-- not been published yet, unless they have waited so long that they count as lost. $2 the versions of existing rows,
-- $3 the keys of rows that no longer exist. The intervals are constants and now() is stable, so that the indexes can
-- be used to find such recent changes.
SELECT l.version, l.key
FROM cachesync.change_log AS l
WHERE
    l.version = ANY($2::bigint [])
    AND (l.published_at > now() - interval '5 seconds'
        OR l.published_at IS NULL AND l.changed_at > now() - interval '5 minutes')
UNION ALL
SELECT l.version - cardinality(l.keys) + r.position, r.key
FROM cachesync.change_log AS l
CROSS JOIN unnest(l.keys) WITH ORDINALITY AS r (key, position)
WHERE
    cardinality($2::bigint []) > 0
    AND (l.published_at > now() - interval '5 seconds'
        OR l.published_at IS NULL AND l.changed_at > now() - interval '5 minutes')
    AND l.entity = $1
    AND l.operation = 'upserts'
    AND l.version - cardinality(l.keys) + r.position = ANY($2::bigint [])
UNION ALL
SELECT l.version, l.key
FROM cachesync.change_log AS l
WHERE
    cardinality($3::text []) > 0
    AND (l.published_at > now() - interval '5 seconds'
        OR l.published_at IS NULL AND l.changed_at > now() - interval '5 minutes')
    AND l.entity = $1
    AND l.operation IN ('delete', 'truncate')
    AND (l.key IS NULL OR l.key = ANY($3::text []));
