-- The logins of services that may create temporary objects in this database.
SELECT m.rolname
FROM pg_roles AS m
WHERE
    m.rolname <> 'cachesync_service' AND NOT m.rolsuper
    AND pg_has_role(m.oid, 'cachesync_service', 'MEMBER')
    AND has_database_privilege(m.oid, current_database(), 'TEMPORARY')
ORDER BY m.rolname;
