-- Whether an entity is installed completely and with this definition. $1 its name, $2 the definition, $3 its table.
SELECT
    EXISTS (SELECT FROM cachesync.entity AS e WHERE e.name = $1 AND e.definition = $2)
    AND EXISTS (SELECT FROM pg_views AS v WHERE v.schemaname = 'cachesync' AND v.viewname = $1)
    AND 7 = (
        SELECT count(*)
        FROM pg_trigger AS g
        JOIN pg_proc AS f ON f.oid = g.tgfoid AND f.pronamespace = 'cachesync'::regnamespace
        WHERE g.tgrelid = to_regclass($3) AND g.tgenabled = 'A'
    );
