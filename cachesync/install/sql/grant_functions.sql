-- Who creates or attaches a partition needs the privilege to execute the functions of the triggers that it gets.
DO $cachesync$
BEGIN
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION %s TO %I', {{of_each_row}},
        (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = {{table_name}}::regclass)
    );
END
$cachesync$;
