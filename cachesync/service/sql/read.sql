-- One row. $1 its key.
SELECT t.row_version AS version, {{payload}} AS payload
FROM {{table}} AS t
WHERE {{has_key}};
