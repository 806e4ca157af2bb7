-- What services may do with a table, and the background work with its view.
REVOKE ALL ON {{table}} FROM cachesync_service;
GRANT
SELECT ({{readable}}), INSERT ({{columns}}), UPDATE ({{columns}}), DELETE
ON {{table}} TO cachesync_service;
GRANT SELECT ON {{view}} TO cachesync_worker;
