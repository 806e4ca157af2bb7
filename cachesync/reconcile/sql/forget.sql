-- Deletes run $1 if it has ended, so that it can be repeated, and all runs older than 90 days.
WITH forgotten AS (
    DELETE FROM cachesync.reconciliation AS r
    WHERE (r.run = $1 AND r.finished_at IS NOT NULL) OR r.started_at < now() - interval '90 days'
    RETURNING r.run
)
DELETE FROM cachesync.reconciliation_chunk AS c USING forgotten AS f WHERE c.run = f.run;
