-- The privileges of services on a table, and those of all processes on its view. An update of the row version only makes the
-- row draw a new one, which a trigger can have to do on behalf of a service. Of a partitioned table, services read the
-- partition of a row, too.
REVOKE ALL ON {{table}} FROM cachesync_service;
GRANT
SELECT ({{readable}}{{partition}}), INSERT ({{columns}}), UPDATE ({{readable}}), DELETE
ON {{table}} TO cachesync_service;
GRANT SELECT ON {{view}} TO cachesync_service, cachesync_worker;
