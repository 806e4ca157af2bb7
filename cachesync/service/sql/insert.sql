-- Inserts one row, in a transaction of its own. $1 a JSON object with a member for each of the columns.
--
-- RETURNING does not show the version that the AFTER INSERT trigger draws if others have drawn one. The log then does.
WITH inserted AS (
    {{insert}}
    RETURNING
        {{key_text}} AS key,
        cachesync.drawn(0, t.row_version) AS version,
        cachesync.bounded({{payload}}, {{row_limit}}) AS payload,
        CASE
            WHEN
                pg_sequence_last_value('cachesync.row_version') IS DISTINCT FROM t.row_version
                OR current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
                OR {{spreads}}
                THEN pg_current_xact_id()::text
        END AS transaction
)
SELECT cachesync.kept(i.key) AS key, i.version, i.payload, i.transaction, transaction_timestamp() AS began
FROM (VALUES (1)) AS always
LEFT JOIN inserted AS i ON true;
