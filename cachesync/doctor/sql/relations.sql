-- The entity with the most tables, partitions and indexes, all of which a statement on the whole table can lock.
SELECT
    e.name,
    (
        SELECT count(*) + coalesce(sum((SELECT count(*) FROM pg_index AS i WHERE i.indrelid = p.relid)), 0)::bigint
        FROM cachesync.partition_tree(e.relation) AS p
    ) AS relations
FROM cachesync.entity AS e
WHERE e.relation IS NOT NULL
ORDER BY relations DESC
LIMIT 1;
