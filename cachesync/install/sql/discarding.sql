-- What can discard new lines of the change log; null if there is nothing.
SELECT cachesync.discards('cachesync.change_log'::regclass);
