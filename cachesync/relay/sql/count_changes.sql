-- The number of changes with versions above $1 and up to $2. A line has the changes up to its own version, at most 100.
SELECT
    coalesce(sum(least(l.version, $2::bigint) - greatest(l.version - coalesce(cardinality(l.keys), 1), $1::bigint)), 0)
    ::bigint
FROM cachesync.change_log AS l
WHERE
    l.version > $1::bigint AND l.version < $2::bigint + 100
    AND l.version - coalesce(cardinality(l.keys), 1) < $2::bigint;
