-- Makes the rows of a table older than all later changes, if it was restored without the library, or if the sequence was
-- set back. Other entities can draw
-- versions in the meantime, but not as many as are left out.
SELECT setval('cachesync.row_version', r.version + 1000000)
FROM (SELECT max(t.row_version) AS version FROM {{table}} AS t) AS r
WHERE r.version > (SELECT s.last_value FROM cachesync.row_version AS s);
