-- The transactions of this database that have been open for at least $1 seconds, the longest first. Vacuum keeps every
-- line that was deleted after they began. The rows of other logins show when they began only to pg_read_all_stats.
SELECT t.name, t.seconds
FROM (
    SELECT
        format('%s of %s (pid %s)', coalesce(nullif(a.application_name, ''), 'a session'), a.usename, a.pid) AS name,
        extract(epoch FROM clock_timestamp() - a.xact_start)::float AS seconds
    FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
    UNION ALL
    SELECT
        format('prepared transaction %s of %s', p.gid, p.owner),
        extract(epoch FROM clock_timestamp() - p.prepared)::float
    FROM pg_prepared_xacts AS p
    WHERE p.database = current_database()
) AS t
WHERE t.seconds >= $1
ORDER BY t.seconds DESC;
