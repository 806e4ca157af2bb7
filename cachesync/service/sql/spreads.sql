-- Whether a write can change more than the row that it returns: other rows, or the same row once more. That takes a
-- trigger (which a foreign key that cascades has, too), a rule, or a default that calls a function. Looked up by each
-- write, so that what is created later counts. {{event}} the bit of the write in pg_trigger.tgtype, {{defaults}}
-- whether the write assigns defaults. The other triggers that are built into PostgreSQL only check, or change only the
-- new row.
--
-- The catalogs are not joined: the planner could begin with all functions or triggers of the database, of which there
-- can be thousands.
(
    EXISTS (
        SELECT FROM pg_catalog.pg_trigger AS g
        WHERE
            g.tgrelid = {{relation}}::regclass AND g.tgtype & {{event}} <> 0
            AND (
                SELECT
                    f.pronamespace <> 'cachesync'::regnamespace
                    AND (f.oid >= 16384 OR f.proname ~ '^RI_FKey_(cascade|setnull|setdefault)_')
                FROM pg_catalog.pg_proc AS f
                WHERE f.oid = g.tgfoid
            )
    )
    OR EXISTS (SELECT FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = {{relation}}::regclass)
    OR {{defaults}} AND EXISTS (
        SELECT FROM pg_catalog.pg_attrdef AS a
        WHERE
            a.adrelid = {{relation}}::regclass
            AND (
                SELECT
                    bool_or((
                        SELECT
                            f.provolatile = 'v' AND f.prolang NOT IN (
                                SELECT l.oid FROM pg_catalog.pg_language AS l WHERE l.lanname IN ('c', 'internal')
                            )
                        FROM pg_catalog.pg_proc AS f
                        WHERE f.oid = d.refobjid
                    ))
                FROM pg_catalog.pg_depend AS d
                WHERE
                    d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid AND d.refclassid = 'pg_proc'::regclass
            )
    )
)
