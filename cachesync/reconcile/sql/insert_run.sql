INSERT INTO cachesync.reconciliation (run, parameters, link) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING;
