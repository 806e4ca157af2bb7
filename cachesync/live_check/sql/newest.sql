-- The version of the newest change. Those before it are not followed.
SELECT coalesce(max(l.version), 0) FROM cachesync.change_log AS l;
