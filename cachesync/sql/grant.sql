-- What services may do with a table.
REVOKE ALL ON {{table}} FROM cachesync_service;
GRANT
SELECT ({{readable}}), INSERT ({{columns}}), UPDATE ({{columns}}), DELETE
ON {{table}} TO cachesync_service;
