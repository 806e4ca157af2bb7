-- The privileges of services on a table, and those of the background work on its view.
REVOKE ALL ON {{table}} FROM cachesync_service;
GRANT
SELECT ({{readable}}), INSERT ({{columns}}), UPDATE ({{columns}}), DELETE
ON {{table}} TO cachesync_service;
GRANT SELECT ON {{view}} TO cachesync_worker;
