pg_catalog.replace(pg_catalog.replace({{text}}, '~', '~0'), '/', '~1')
