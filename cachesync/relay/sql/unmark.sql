-- Marks changes as unpublished again. $1 their versions.
SELECT cachesync.unpublish($1);
