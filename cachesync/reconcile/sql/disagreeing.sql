-- Which of the slots disagree with their rows: their numbers, from 1, and the rows' versions; $1 the slots'
-- keys, joined by $2, $3 the slots up to their payloads, joined by $4, $5 the entity. The payloads' digests
-- follow where asked for.
WITH asked AS MATERIALIZED (
    -- No text at all is one key, which is empty.
    SELECT coalesce(nullif(string_to_array($1, $2), '{}'), '{""}')::{{key_type}} [] AS keys
)
SELECT s.number, r.version
FROM unnest((SELECT a.keys FROM asked AS a), string_to_array($3, $4)) WITH ORDINALITY AS s (key, slot, number)
LEFT JOIN (
    SELECT t.key, t.version, t.payload
    FROM {{view}} AS t
    WHERE t.key = ANY((SELECT a.keys FROM asked AS a)::{{key_type}} [])
) AS r ON r.key = s.key
WHERE s.slot <> coalesce(
    'V' || lpad(r.version::text, 19, '0')
    || (SELECT e.fingerprint FROM cachesync.entity AS e WHERE e.name = $5) || {{digest}},
    'A'
);
