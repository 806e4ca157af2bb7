-- How long ago the live check looked at a cache, in seconds; null if it never did.
SELECT extract(epoch FROM clock_timestamp() - max(s.checked_at))::float FROM cachesync.cache_state AS s;
