-- Rows. $1 their keys. The limit makes the planner look up each key, whatever the statistics are.
SELECT u.key, r.version, r.payload
FROM unnest($1::text []) AS u (key)
CROSS JOIN LATERAL (
    SELECT t.row_version AS version, {{payload}} AS payload
    FROM {{table}} AS t
    WHERE {{has_each_key}}
    LIMIT 1
) AS r;
