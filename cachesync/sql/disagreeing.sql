-- Which of the slots disagree with their rows: their numbers, from 1, and the rows' versions; $1 the slots'
-- keys, $2 the slots up to their payloads, $3 the entity. The payloads' digests follow where asked for.
SELECT s.number, r.version
FROM unnest($1::text [], $2::text []) WITH ORDINALITY AS s (key, slot, number)
LEFT JOIN (
    SELECT t.key, t.version, t.payload
    FROM {{view}} AS t
    WHERE t.key = ANY($1::text []::{{key_type}} [])
) AS r ON r.key = s.key::{{key_type}}
WHERE s.slot <> coalesce(
    'V' || lpad(r.version::text, 19, '0')
    || (SELECT e.fingerprint FROM cachesync.entity AS e WHERE e.name = $3) || {{digest}},
    'A'
);
