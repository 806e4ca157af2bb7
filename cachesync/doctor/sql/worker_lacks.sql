-- The privileges that this login lacks of those that the background work needs all the time.
SELECT format('%s on %s', p.privilege, p.object) AS lacking
FROM (
    SELECT 'SELECT' AS privilege, format('cachesync.%I', e.name) AS object
    FROM cachesync.entity AS e
    WHERE NOT has_table_privilege(to_regclass(format('cachesync.%I', e.name)), 'SELECT')
    UNION ALL
    SELECT u.privilege, 'cachesync.change_log'
    FROM unnest(ARRAY['SELECT', 'DELETE']) AS u (privilege)
    WHERE NOT has_table_privilege('cachesync.change_log', u.privilege)
    UNION ALL
    SELECT 'UPDATE (published_at)', 'cachesync.change_log'
    WHERE NOT has_column_privilege('cachesync.change_log', 'published_at', 'UPDATE')
    UNION ALL
    SELECT 'SELECT', 'sequence cachesync.row_version'
    WHERE NOT has_sequence_privilege('cachesync.row_version', 'SELECT')
    UNION ALL
    SELECT 'EXECUTE', format('function cachesync.%I', f.proname)
    FROM pg_proc AS f
    WHERE
        f.pronamespace = 'cachesync'::regnamespace
        AND f.proname IN ('fall_asleep', 'follow_partitions', 'mark_published', 'stay_awake', 'unpublish')
        AND NOT has_function_privilege(f.oid, 'EXECUTE')
) AS p
ORDER BY lacking;
