-- The rows after a key, in key order. $1 the key, null for the first page, $2 the maximum number of rows.
SELECT {{key_text}} AS key, t.row_version AS version, {{payload}} AS payload
FROM {{table}} AS t
WHERE {{follows}}
ORDER BY {{key_columns}}
LIMIT $2;
