-- The rows of the hidden entity.
SELECT c.id FROM cachesync.canary AS c ORDER BY c.id;
