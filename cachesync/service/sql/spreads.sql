-- Whether a write can change more than the row that it returns: other rows, or the same row once more. That takes a
-- trigger (which a foreign key that cascades has, too), a rule, or a function of the user's in what computes or checks
-- a value: a default, a generated column, a CHECK, or the same of a domain, however deeply it is nested. Looked up by
-- each write, so that what is created later counts. {{event}} the bit of the write in pg_trigger.tgtype, {{values}}
-- whether the write stores values, {{defaults}} whether it assigns defaults. The other triggers that are built into
-- PostgreSQL only check, or change only the new row.
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
    OR {{values}} AND (
        EXISTS (
            SELECT FROM pg_catalog.pg_attrdef AS a
            WHERE
                a.adrelid = {{relation}}::regclass
                AND (
                    {{defaults}}
                    OR (
                        SELECT b.attgenerated <> ''
                        FROM pg_catalog.pg_attribute AS b
                        WHERE b.attrelid = a.adrelid AND b.attnum = a.adnum
                    )
                )
                AND cachesync.can_write('pg_attrdef'::regclass, a.oid)
        )
        OR EXISTS (
            SELECT FROM pg_catalog.pg_constraint AS c
            WHERE
                c.conrelid = {{relation}}::regclass AND c.contype = 'c'
                AND cachesync.can_write('pg_constraint'::regclass, c.oid)
        )
        OR EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS a
            WHERE
                a.attrelid = {{relation}}::regclass AND a.attnum > 0 AND NOT a.attisdropped
                AND a.atttypid >= 16384
                AND (SELECT t.typtype <> 'e' FROM pg_catalog.pg_type AS t WHERE t.oid = a.atttypid)
                AND cachesync.type_can_write(a.atttypid)
        )
    )
)
