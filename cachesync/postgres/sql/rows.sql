-- The rows with the given keys. $1 the keys, $2 the entity. The limit makes the planner look up each key, whatever the
-- statistics are.
SELECT u.key, t.version, t.payload, e.fingerprint
FROM unnest($1::text []) AS u (key)
CROSS JOIN LATERAL (SELECT v.version, v.payload FROM {{view}} AS v WHERE {{has_key}} LIMIT 1) AS t
CROSS JOIN cachesync.entity AS e
WHERE e.name = $2;
