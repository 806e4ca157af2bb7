-- $1 the key, $2 a JSON object with just the members that are assigned, $3 the versions that are
-- acceptable; null: any.
UPDATE {{table}} AS t SET {{assignments}}
FROM jsonb_to_record($2::text::jsonb) AS p ({{definitions}})
WHERE t.{{key}} = $1::text::{{key_type}} AND ($3::bigint [] IS NULL OR t.row_version = ANY($3))
RETURNING t.row_version AS version, {{payload}} AS payload;
