-- The roles of this login. A role that does not exist is null, and so is one whose privileges must be taken on by SET ROLE.
SELECT
    current_user AS login,
    u.rolsuper AS is_superuser,
    (SELECT pg_has_role(r.oid, 'USAGE') FROM pg_roles AS r WHERE r.rolname = 'cachesync_worker') AS is_worker,
    (SELECT pg_has_role(r.oid, 'USAGE') FROM pg_roles AS r WHERE r.rolname = 'cachesync_service') AS is_service,
    (SELECT pg_has_role(r.oid, 'MEMBER') FROM pg_roles AS r WHERE r.rolname = 'cachesync_worker') AS can_be_worker,
    (SELECT pg_has_role(r.oid, 'MEMBER') FROM pg_roles AS r WHERE r.rolname = 'cachesync_service') AS can_be_service
FROM pg_roles AS u
WHERE u.rolname = current_user;
