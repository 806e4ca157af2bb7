-- Inserts one row into a table with rules, which PostgreSQL does not allow in WITH. $1 as for `insert.sql`.
{{insert}}
RETURNING {{key_text}} AS key, pg_current_xact_id()::text AS transaction, transaction_timestamp() AS began;
