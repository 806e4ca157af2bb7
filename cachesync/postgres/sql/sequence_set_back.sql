-- Whether versions that will be drawn are lower than those of changes in the log: the sequence was set back, or not
-- replicated.
SELECT max(l.version) > (SELECT s.last_value FROM cachesync.row_version AS s) FROM cachesync.change_log AS l;
