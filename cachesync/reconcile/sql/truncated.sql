-- The entities whose tables may have been truncated since $1.
SELECT DISTINCT l.entity
FROM cachesync.change_log AS l
WHERE (l.published_at > $1 OR l.published_at IS NULL) AND l.operation = 'truncate';
