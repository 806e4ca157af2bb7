-- Marks changes as published. $1 their versions.
SELECT cachesync.mark_published($1);
