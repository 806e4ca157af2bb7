pg_catalog.replace(pg_catalog.replace({{text}}, '~1', '/'), '~0', '~')
