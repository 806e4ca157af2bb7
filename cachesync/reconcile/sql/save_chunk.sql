-- Saves the progress of one chunk; $1 the run, $2 the service, $3 the number, $4 the cursor, $5 the findings,
-- $6 whether the chunk is finished.
UPDATE cachesync.reconciliation_chunk
SET cursor = $4, findings = $5, finished_at = CASE WHEN $6 THEN clock_timestamp() END
WHERE run = $1 AND service = $2 AND number = $3;
