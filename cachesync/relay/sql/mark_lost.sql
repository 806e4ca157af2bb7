-- Remembers until the next installation of an entity that its changes may not have been captured. $1 the entity, $2
-- the number of its installation.
UPDATE cachesync.entity AS e SET lost_at = statement_timestamp()
WHERE e.name = $1 AND e.installation = $2 AND e.relation IS NOT NULL AND e.lost_at IS NULL;
