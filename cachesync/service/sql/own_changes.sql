-- The next changes that a committed transaction of this login has made. $1 the transaction, $2 and $3 the position in
-- the log, $4 the size in bytes from which on payloads are left out.
SELECT * FROM cachesync.own_changes($1::text::xid8, $2, $3, $4);
