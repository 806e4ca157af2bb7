-- Reading rows in sessions that are not those of this library.

-- The rows of a query with the text that they have in the change log, whatever the settings of the session are. $1 of the
-- query is the keys.
CREATE OR REPLACE FUNCTION cachesync.read_rows(query text, keys text [])
RETURNS TABLE (key text, version bigint, payload text)
LANGUAGE plpgsql STABLE {{settings}}
AS $cachesync$
BEGIN
    RETURN QUERY EXECUTE query USING keys;
END
$cachesync$;

GRANT EXECUTE ON FUNCTION cachesync.read_rows(text, text []) TO cachesync_service;
