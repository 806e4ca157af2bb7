-- Marks lines that were taken longer ago as published now. $1 their versions.
UPDATE cachesync.change_log AS l SET published_at = clock_timestamp() WHERE l.version = ANY($1::bigint []);
