-- One row. $1 its key.
SELECT t.row_version AS version, {{payload}} AS payload
FROM {{table}} AS t
WHERE t.{{key}} = $1::text::{{key_type}};
