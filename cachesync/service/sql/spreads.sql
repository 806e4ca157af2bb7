-- Whether a write can change more than the row that it returns: other rows, or the same row once more. That takes a
-- trigger (which a foreign key that cascades has, too), a rule, or a default that calls a function. Looked up by each
-- write, so that what is created later counts. {{event}} the bit of the write in pg_trigger.tgtype. The other triggers
-- that are built into PostgreSQL only check, or change only the new row.
(
    EXISTS (
        SELECT FROM pg_catalog.pg_trigger AS g
        JOIN pg_catalog.pg_proc AS f ON f.oid = g.tgfoid
        WHERE
            g.tgrelid = {{relation}}::regclass AND g.tgtype & {{event}} <> 0
            AND f.pronamespace <> 'cachesync'::regnamespace
            AND (f.oid >= 16384 OR f.proname ~ '^RI_FKey_(cascade|setnull|setdefault)_')
    )
    OR EXISTS (SELECT FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = {{relation}}::regclass)
    OR EXISTS (
        SELECT FROM pg_catalog.pg_attrdef AS a
        JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid
        JOIN pg_catalog.pg_proc AS f
            ON d.refclassid = 'pg_proc'::regclass AND f.oid = d.refobjid AND f.provolatile = 'v'
        JOIN pg_catalog.pg_language AS l ON l.oid = f.prolang AND l.lanname NOT IN ('c', 'internal')
        WHERE a.adrelid = {{relation}}::regclass
    )
)
