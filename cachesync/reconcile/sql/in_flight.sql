-- Which changes may still be on their way to the caches: those published a moment ago, and those that have
-- yet to be, unless that takes so long that they are lost, as far as caches are concerned. $1 the entity, $2
-- versions of rows that are there, $3 keys of rows that are gone. The intervals are constants, and now() keeps
-- still, so that the indexes lead to what is that young.
SELECT l.version, l.key
FROM cachesync.change_log AS l
WHERE
    l.version = ANY($2::bigint [])
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
    AND l.operation <> 'upsert'
    AND (l.key IS NULL OR l.key = ANY($3::text []));
