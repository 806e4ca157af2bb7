-- The last $3 violations that the live check saw of the key $2 of the entity $1, the newest first.
SELECT v.service, v.kind, v.version, v.committed_at, v.noticed_at, v.seen_at, v.found::text AS found
FROM cachesync.violation AS v
WHERE v.entity = $1 AND v.key = $2
ORDER BY v.id DESC
LIMIT $3;
