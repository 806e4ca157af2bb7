-- Deletes one row. $1 the key, $2 the versions that the row may have; null for any.
DELETE FROM {{table}} AS t
WHERE {{has_key}} AND ($2::bigint [] IS NULL OR t.row_version = ANY($2))
RETURNING
    CASE WHEN {{spreads}} THEN pg_current_xact_id()::text END AS transaction,
    transaction_timestamp() AS began;
