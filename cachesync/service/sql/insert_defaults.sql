-- Inserts a row of defaults, for an empty JSON object.
INSERT INTO {{table}} AS t DEFAULT VALUES
RETURNING
    t.{{key}}::text AS key,
    CASE WHEN {{spreads}} THEN pg_current_xact_id()::text END AS transaction,
    transaction_timestamp() AS began;
