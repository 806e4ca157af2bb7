-- What a committed transaction of this login has changed, as `final_changes.sql` returns it. $1 the transaction, $2 when it
-- began, $3 how many lines of the change log to return, $4 the size in bytes from which on payloads are left out.
SELECT
    c.version, c.entity, c.key, c.operation, c.fingerprint, c.payload, c.source,
    (extract(epoch FROM c.changed_at) * 1000000)::pg_catalog.int8 AS changed_us
FROM cachesync.transaction_changes($1::text::xid8, $2, $3, $4) AS c;
