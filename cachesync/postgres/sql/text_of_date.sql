pg_catalog.btrim(pg_catalog.to_json({{value}})::pg_catalog.text, '"')
