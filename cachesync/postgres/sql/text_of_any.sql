{{value}}::pg_catalog.text
