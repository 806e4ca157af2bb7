-- The number of lines with versions above $1 and up to $2.
SELECT count(*) FROM cachesync.change_log WHERE version > $1 AND version <= $2;
