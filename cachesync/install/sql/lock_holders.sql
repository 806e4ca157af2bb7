-- The sessions that hold locks on a table. $1 its name.
SELECT format('%s (user %s%s)', a.pid, a.usename, ', ' || nullif(a.application_name, '')) AS session
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.relation = to_regclass($1) AND l.granted AND a.pid <> pg_backend_pid()
GROUP BY a.pid, a.usename, a.application_name
ORDER BY a.pid;
