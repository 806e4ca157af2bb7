-- Forgets a run that has ended, so that it can be made again; $1 its id.
WITH forgotten AS (
    DELETE FROM cachesync.reconciliation AS r WHERE r.run = $1 AND r.finished_at IS NOT NULL
    RETURNING r.run
)
DELETE FROM cachesync.reconciliation_chunk AS c USING forgotten AS f WHERE c.run = f.run;
