-- Marks lines that were taken as unpublished again. $1 their versions.
UPDATE cachesync.change_log AS l SET published_at = NULL WHERE l.version = ANY($1::bigint []);
