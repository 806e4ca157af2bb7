-- Whether each statement of the present transaction shows what others have committed before it, and nothing else.
SELECT
    pg_catalog.pg_current_xact_id_if_assigned() IS NULL
    AND pg_catalog.current_setting('transaction_isolation') IN ('read committed', 'read uncommitted');
