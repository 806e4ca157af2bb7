pg_catalog.split_part({{text}}, '/', {{number}})
