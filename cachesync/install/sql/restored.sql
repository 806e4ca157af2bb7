-- The rows of a table can have higher versions if it was restored without the library, or if the sequence was set back.
SELECT cachesync.draw_above(max(t.row_version)) FROM {{table}} AS t;
