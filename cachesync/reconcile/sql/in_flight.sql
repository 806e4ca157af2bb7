-- Changes of entity $1 that may still be in flight to the caches: those that were just published, and those that have
-- not been published yet, unless they have waited so long that they count as lost. $2 the versions of existing rows,
-- $3 the keys of rows that no longer exist. The intervals are constants and now() is stable, so that the indexes can
-- be used to find such recent changes.
SELECT u.version, NULL AS key
FROM unnest($2::bigint []) AS u (version)
CROSS JOIN LATERAL (
    -- Lines do not overlap: if the row has no line of its own, it is in the next one, which has at most 100 rows.
    SELECT o.version, o.keys, o.published_at, o.changed_at
    FROM cachesync.change_log AS o
    WHERE o.version >= u.version AND o.version < u.version + 100
    ORDER BY o.version
    LIMIT 1
) AS l
WHERE
    l.version - coalesce(cardinality(l.keys), 1) < u.version
    AND (l.published_at > now() - interval '5 seconds'
        OR l.published_at IS NULL AND l.changed_at > now() - interval '5 minutes')
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
