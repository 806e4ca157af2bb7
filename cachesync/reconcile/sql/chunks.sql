-- The chunks of run $1, in order.
SELECT task, findings, finished_at
FROM cachesync.reconciliation_chunk
WHERE run = $1
ORDER BY service, number;
