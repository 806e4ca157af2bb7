pg_catalog.trim_scale({{value}})::pg_catalog.text
