-- Empties every slot of an entity that is older than this statement. The fingerprint invalidates values, but not
-- *absent*.
INSERT INTO cachesync.change_log (version, entity, operation, source)
VALUES (nextval('cachesync.row_version'), {{entity}}, 'truncate', 'cachesync install');
