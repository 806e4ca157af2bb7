-- A block of a PL/pgSQL function, which finds the rows in `new_rows`. Each row gets a line of its own, but after the first
-- 100, up to 100 rows with consecutive versions share one, unless the session publishes its changes itself. The rows are
-- read twice in the same order, which is that of their versions.
DECLARE
    logged pg_catalog.int8;
    "row" pg_catalog.record;
    last_version pg_catalog.int8;
    keys pg_catalog.text [] := '{}';
    payloads pg_catalog.text [] := '{}';
    bytes pg_catalog.int4 := 0;
    announced pg_catalog.bool;
BEGIN
    INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
    SELECT
        n.row_version, {{entity}}, {{key_of_new}}, 'upsert', {{fingerprint}},
        {{json_schema}}.row_to_json(p.*)::pg_catalog.text, cachesync.source()
    FROM new_rows AS n
    CROSS JOIN LATERAL (SELECT {{columns}}) AS p
    LIMIT CASE WHEN cachesync.publishes() THEN NULL ELSE 100 END;
    GET DIAGNOSTICS logged := ROW_COUNT;
    IF logged OPERATOR(pg_catalog.=) 100::pg_catalog.int8 AND NOT cachesync.publishes() THEN
        FOR "row" IN
            SELECT
                n.row_version AS version, {{key_of_new}} AS key,
                {{json_schema}}.row_to_json(p.*)::pg_catalog.text AS payload
            FROM (SELECT r.* FROM new_rows AS r OFFSET 100) AS n
            CROSS JOIN LATERAL (SELECT {{columns}}) AS p
        LOOP
            IF
                "row".version OPERATOR(pg_catalog.<>) (last_version OPERATOR(pg_catalog.+) 1)
                OR pg_catalog.cardinality(keys) OPERATOR(pg_catalog.=) 100
                OR pg_catalog.octet_length("row".payload) OPERATOR(pg_catalog.>) (65536 OPERATOR(pg_catalog.-) bytes)
            THEN
                PERFORM cachesync.log_upserts(last_version, {{entity}}, {{fingerprint}}, keys, payloads);
                keys := '{}';
                payloads := '{}';
                bytes := 0;
            END IF;
            last_version := "row".version;
            keys := pg_catalog.array_append(keys, "row".key);
            payloads := pg_catalog.array_append(payloads, "row".payload);
            bytes := bytes OPERATOR(pg_catalog.+) pg_catalog.octet_length("row".payload);
        END LOOP;
        PERFORM cachesync.log_upserts(last_version, {{entity}}, {{fingerprint}}, keys, payloads);
    END IF;
    -- An assignment of an expression starts no query.
    announced := cachesync.announce_change();
END;
