-- What a transaction of this login has changed. {{function}} the function that says so: `final_changes` or
-- `transaction_changes`. Times are numbers, whose text does not depend on the session.
SELECT
    c.version, c.entity, c.key, c.operation, c.fingerprint, c.payload, c.source,
    (extract(epoch FROM c.changed_at) * 1000000)::pg_catalog.int8 AS changed_us
FROM cachesync.{{function}} AS c;
