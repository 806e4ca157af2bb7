-- Updates one row. $1 the key, $2 a JSON object with a member for each assigned column, $3 the versions that
-- the row may have; null for any.
UPDATE {{table}} AS t SET {{assignments}}
FROM jsonb_to_record($2::text::jsonb) AS p ({{definitions}})
WHERE {{has_key}} AND ($3::bigint [] IS NULL OR t.row_version = ANY($3))
RETURNING
    {{key_text}} AS key,
    cachesync.drawn(
        (SELECT o.row_version FROM {{table}} AS o WHERE {{old_has_key}}), t.row_version
    ) AS version,
    cachesync.bounded({{payload}}, {{row_limit}}) AS payload,
    CASE WHEN {{spreads}} THEN pg_current_xact_id()::text END AS transaction,
    transaction_timestamp() AS began;
