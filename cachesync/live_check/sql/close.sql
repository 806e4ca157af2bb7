-- The slots of these violations are right again.
UPDATE cachesync.violation AS v SET seen_at = clock_timestamp() WHERE v.id = ANY($1::bigint []);
