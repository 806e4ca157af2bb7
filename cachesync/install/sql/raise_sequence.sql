-- Continues a sequence that was set back, or not replicated, above the versions in the log and in the caches.
SELECT setval('cachesync.row_version', max(l.version) + 1000000) FROM cachesync.change_log AS l;
