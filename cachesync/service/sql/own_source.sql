-- Lets the service publish what the transaction is about to change. {{service}} its name. Not a query, after which the
-- isolation level could no longer be set.
SET LOCAL cachesync.source = {{service}};
