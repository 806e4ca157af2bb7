-- Statements of a PL/pgSQL function, which declares the variables and finds the rows in `new_rows`. Each row gets a line
-- of its own, but after the first 100, up to 100 rows with consecutive versions share one, unless the session publishes its
-- changes itself.
INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
SELECT
    n.row_version, {{entity}}, n.{{key}}::pg_catalog.text, 'upsert', {{fingerprint}},
    {{json_schema}}.row_to_json(p.*)::pg_catalog.text, cachesync.source()
FROM new_rows AS n
CROSS JOIN LATERAL (SELECT {{columns}}) AS p
LIMIT CASE WHEN cachesync.publishes() THEN NULL ELSE 100 END;
GET DIAGNOSTICS logged = ROW_COUNT;
IF logged OPERATOR(pg_catalog.=) 100::pg_catalog.int8 AND NOT cachesync.publishes() THEN
    rows_in_line := 0;
    bytes_in_line := 0;
    keys := '{}';
    payloads := '{}';
    FOR "row" IN
        SELECT
            n.row_version AS version, n.{{key}}::pg_catalog.text AS key,
            {{json_schema}}.row_to_json(p.*)::pg_catalog.text AS payload
        FROM new_rows AS n
        CROSS JOIN LATERAL (SELECT {{columns}}) AS p
        OFFSET 100
    LOOP
        IF
            rows_in_line OPERATOR(pg_catalog.>) 0 AND (
                rows_in_line OPERATOR(pg_catalog.=) 100
                OR bytes_in_line OPERATOR(pg_catalog.>) 65536
                OR "row".version OPERATOR(pg_catalog.<>) (last_version OPERATOR(pg_catalog.+) 1)
            )
        THEN
            INSERT INTO cachesync.change_log (version, entity, operation, fingerprint, source, keys, payloads)
            SELECT last_version, {{entity}}, 'upserts', {{fingerprint}}, cachesync.source(), keys, payloads;
            rows_in_line := 0;
            bytes_in_line := 0;
            keys := '{}';
            payloads := '{}';
        END IF;
        keys := pg_catalog.array_append(keys, "row".key);
        payloads := pg_catalog.array_append(payloads, "row".payload);
        last_version := "row".version;
        rows_in_line := rows_in_line OPERATOR(pg_catalog.+) 1;
        bytes_in_line := bytes_in_line OPERATOR(pg_catalog.+) pg_catalog.octet_length("row".payload);
    END LOOP;
    IF rows_in_line OPERATOR(pg_catalog.>) 0 THEN
        INSERT INTO cachesync.change_log (version, entity, operation, fingerprint, source, keys, payloads)
        SELECT last_version, {{entity}}, 'upserts', {{fingerprint}}, cachesync.source(), keys, payloads;
    END IF;
END IF;
-- An assignment of an expression starts no query.
announced := cachesync.announce_change();
