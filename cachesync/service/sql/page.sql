-- The rows after a key, in key order. $1 the key, null for the first page, $2 the maximum number of rows, $3 the size
-- of the payloads in bytes that ends the page. If rows follow, the last line of the result is the next one, without its
-- payload. A recursion, because it stops where a payload takes the page past its size; a LIMIT could not know that, and
-- a window function would first make the payloads of all rows up to $2.
WITH RECURSIVE page AS (
    SELECT f.key, f.version, f.payload, 1 AS number, octet_length(f.payload)::bigint AS bytes
    FROM (
        SELECT t.{{key}} AS key, t.row_version AS version, {{payload}} AS payload
        FROM {{table}} AS t
        WHERE {{follows}}
        ORDER BY t.{{key}}
        LIMIT 1
    ) AS f
    UNION ALL
    SELECT n.key, n.version, n.payload, p.number + 1, p.bytes + octet_length(n.payload)
    FROM page AS p
    CROSS JOIN LATERAL (
        SELECT
            t.{{key}} AS key,
            t.row_version AS version,
            CASE WHEN p.number < $2 AND p.bytes < $3 THEN {{payload}} END AS payload
        FROM {{table}} AS t
        WHERE t.{{key}} > p.key
        ORDER BY t.{{key}}
        LIMIT 1
    ) AS n
    WHERE p.payload IS NOT NULL
)
SELECT p.key::text AS key, p.version, p.payload
FROM page AS p
ORDER BY p.number;
