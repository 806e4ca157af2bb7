-- The tables of entities whose owner this login is not.
SELECT e.name
FROM cachesync.entity AS e
JOIN pg_class AS c ON c.oid = e.relation
WHERE NOT pg_has_role(c.relowner, 'USAGE')
ORDER BY e.name;
