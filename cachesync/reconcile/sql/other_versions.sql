-- The numbers, from 1, of the values whose versions differ from their rows', and the rows' versions. $1 is the values'
-- keys, joined by newlines; $2 is their versions, joined by commas; $3 is the entity; $4 is the values' fingerprint. If
-- the entity has another one, all values differ.
WITH requested AS MATERIALIZED (
    -- An empty $1 is one key that is the empty string.
    SELECT
        coalesce(nullif(string_to_array($1, E'\n'), '{}'), '{""}')::{{key_type}} [] AS keys,
        string_to_array($2, ',')::bigint [] AS versions
)
SELECT s.number, r.version
FROM (
    -- Functions in FROM would store their results first.
    SELECT
        unnest(q.keys) AS key,
        unnest(q.versions) AS version,
        generate_series(1, cardinality(q.keys)) AS number
    FROM requested AS q
) AS s
LEFT JOIN {{rows}}
WHERE s.version IS DISTINCT FROM r.version OR $4 IS DISTINCT FROM (
    SELECT e.fingerprint FROM cachesync.entity AS e WHERE e.name = $3
);
