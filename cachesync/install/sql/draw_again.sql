-- Statements of a PL/pgSQL function, which sets `overtaken`, the keys; `lowest` and `highest`, the bounds of the versions
-- that their statement drew; and `moved`, the setting. The search_path can be that of the writer.

-- None of these rows gets its key by this update.
PERFORM pg_catalog.set_config('cachesync.moved', 'off', true);
-- EXECUTE makes a plan for the actual number of keys. The drawn number replaces the 0, which differs from the
-- old version so that a trigger that suppresses redundant updates does not suppress this one. Only an old
-- snapshot still shows a row below the lowest version.
EXECUTE $update$
    UPDATE {{table}} AS t SET row_version = 0
    FROM pg_catalog.unnest($1) AS u (key)
    WHERE {{has_key_of_list}} AND t.row_version OPERATOR(pg_catalog.>=) $2
$update$ USING overtaken, lowest;
GET DIAGNOSTICS drawn = ROW_COUNT;
PERFORM pg_catalog.set_config('cachesync.moved', moved, true);
EXECUTE $select$
    SELECT EXISTS (
        SELECT FROM {{table}} AS t
        CROSS JOIN pg_catalog.unnest($1) AS u (key)
        WHERE
            {{has_key_of_list}}
            AND t.row_version OPERATOR(pg_catalog.>=) $2 AND t.row_version OPERATOR(pg_catalog.<=) $3
    )
$select$ INTO lagging USING overtaken, lowest, highest;
-- Row security can hide rows from the writer; the owner's privileges are not subject to it.
IF lagging OR (
    pg_catalog.row_security_active({{table_name}}::pg_catalog.regclass)
    AND drawn OPERATOR(pg_catalog.<) pg_catalog.cardinality(overtaken)
) THEN
    RAISE EXCEPTION 'a key was deleted while its row was being inserted, and a trigger or policy of the table '
        'prevented the row from drawing a new version'
        USING ERRCODE = 'serialization_failure', HINT = 'Retry the transaction.';
END IF;
