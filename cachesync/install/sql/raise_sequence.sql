-- Continues a sequence that was set back, or not replicated, above the versions in the log and in the caches.
SELECT cachesync.draw_above(max(l.version)) FROM cachesync.change_log AS l;
