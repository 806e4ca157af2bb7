-- Gives the partitions of an entity the triggers that PostgreSQL does not give them. If one is in use, the installation
-- tries again.
DO $cachesync$
DECLARE
    failed text := (SELECT f.failures FROM cachesync.follow_partitions({{entity}}) AS f);
BEGIN
    IF failed IS NOT NULL THEN
        RAISE EXCEPTION '%', failed USING ERRCODE = 'lock_not_available';
    END IF;
END
$cachesync$;
