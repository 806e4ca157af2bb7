INSERT INTO cachesync.reconciliation_chunk (run, service, number, task, cursor)
VALUES ($1, $2, $3, $4, $5);
