-- Inserts one row. $1 a JSON object with a member for each of the columns.
INSERT INTO {{table}} AS t ({{columns}})
SELECT {{values}}
FROM jsonb_to_record($1::text::jsonb) AS p ({{definitions}})
RETURNING
    t.{{key}}::text AS key,
    CASE WHEN {{spreads}} THEN pg_current_xact_id()::text END AS transaction,
    transaction_timestamp() AS began;
