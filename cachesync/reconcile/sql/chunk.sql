-- The progress of one chunk, and the parameters of its run; $1 the run, $2 the service, $3 the number.
SELECT c.cursor, c.findings, c.finished_at, r.parameters
FROM cachesync.reconciliation_chunk AS c
JOIN cachesync.reconciliation AS r USING (run)
WHERE c.run = $1 AND c.service = $2 AND c.number = $3;
