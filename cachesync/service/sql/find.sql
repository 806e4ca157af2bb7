-- The row that has a value in unique columns, if there is one. $1 a list with that value alone: other queries for rows have
-- a list of keys. The limit matters only if the unique index was dropped a moment ago.
SELECT r.key, r.version, r.payload
FROM unnest($1::text []) AS u (value)
CROSS JOIN LATERAL (
    SELECT {{key_text}} AS key, t.row_version AS version, {{payload}} AS payload
    FROM {{table}} AS t
    WHERE {{has_value}}
    LIMIT 1
) AS r;
