-- The numbers, from 1, of the slots that differ from their rows, and the rows' versions. $1 is the slots' keys, joined
-- by $2; $3 is the slots up to their payloads, joined by $4; $5 is the entity. In a deep run, each slot in $3 is
-- followed by the digest of its payload.
WITH requested AS MATERIALIZED (
    -- An empty $1 is one key that is the empty string.
    SELECT coalesce(nullif(string_to_array($1, $2), '{}'), '{""}')::{{key_type}} [] AS keys
)
SELECT s.number, r.version
FROM unnest((SELECT q.keys FROM requested AS q), string_to_array($3, $4)) WITH ORDINALITY AS s (key, slot, number)
LEFT JOIN {{rows}}
WHERE s.slot <> coalesce(
    'V' || lpad(r.version::text, 19, '0')
    || (SELECT e.fingerprint FROM cachesync.entity AS e WHERE e.name = $5) || {{digest}},
    'A'
);
