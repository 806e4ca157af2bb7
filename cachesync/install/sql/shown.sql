-- A dump of the table alone can be restored into a database without these triggers, which must accept rows.
DO $cachesync$
BEGIN
    -- Setting a default would wait for every reader before it looks.
    IF NOT EXISTS (
        SELECT FROM pg_attribute AS a
        WHERE a.attrelid = {{table_name}}::regclass AND a.attname = 'row_version' AND a.atthasdef
    ) THEN
        ALTER TABLE {{table}} ALTER COLUMN row_version SET DEFAULT 0;
    END IF;
END
$cachesync$;

-- PostgreSQL refuses to drop or retype a column that a view uses. Without the view, such a change would succeed,
-- and every later write would then fail in the triggers above.
CREATE OR REPLACE VIEW {{view}} AS
SELECT
    {{shown_key}},
    t.row_version AS version,
    {{payload}} AS payload{{shown_lookups}}
FROM {{table}} AS t;
COMMENT ON VIEW {{view}} IS 'The rows of this entity as caches hold them; before you change one of these columns, remove it from the declaration and run `cachesync install`';
