-- What the transaction of the user has changed, as its last statement. {{lines}} how many lines of the change log to
-- return, {{payload_bytes}} the size in bytes from which on payloads are left out. It has no parameters, because each
-- driver writes them differently, and returns times as numbers, whose text does not depend on the session.
SELECT
    c.version, c.entity, c.key, c.operation, c.fingerprint, c.payload, c.source,
    (extract(epoch FROM c.changed_at) * 1000000)::pg_catalog.int8 AS changed_us
FROM cachesync.final_changes({{lines}}, {{payload_bytes}}) AS c;
