-- Statements of a PL/pgSQL function, which declares `announced` and finds the rows in `new_rows`.
INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source)
SELECT
    n.row_version, {{entity}}, n.{{key}}::pg_catalog.text, 'upsert', {{fingerprint}},
    {{json_schema}}.row_to_json(p.*)::pg_catalog.text, cachesync.source()
FROM new_rows AS n
CROSS JOIN LATERAL (SELECT {{columns}}) AS p;
-- An assignment of an expression starts no query.
announced := cachesync.announce_change();
