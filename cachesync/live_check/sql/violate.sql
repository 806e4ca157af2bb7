-- Records a slot that is not right. $5 is the age of the change, in seconds.
INSERT INTO cachesync.violation (service, entity, key, version, committed_at, kind, found)
VALUES ($1, $2, $3, $4, clock_timestamp() - make_interval(secs => $5), $6, $7::jsonb)
RETURNING id;
