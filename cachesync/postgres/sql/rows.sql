-- The rows with the given keys, or with the given values of unique columns. $1 their texts, $2 the entity. The limit makes
-- the planner look up each text, whatever the statistics are.
SELECT u.text, t.key, t.version, t.payload, e.fingerprint
FROM unnest($1::text []) AS u (text)
CROSS JOIN LATERAL (
    SELECT {{key_text}} AS key, v.version, v.payload FROM {{view}} AS v WHERE {{has_text}} LIMIT 1
) AS t
CROSS JOIN cachesync.entity AS e
WHERE e.name = $2;
