-- The rows with the given keys. $1 the keys, $2 the entity.
SELECT t.key::text AS key, t.version, t.payload, e.fingerprint
FROM {{view}} AS t
CROSS JOIN cachesync.entity AS e
WHERE t.key = ANY($1::text []::{{key_type}} []) AND e.name = $2;
