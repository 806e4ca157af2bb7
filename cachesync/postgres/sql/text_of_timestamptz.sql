pg_catalog.replace(
    pg_catalog.replace(
        pg_catalog.btrim(pg_catalog.to_json(pg_catalog.timezone('UTC', {{value}}))::pg_catalog.text, '"')
        OPERATOR(pg_catalog.||) 'Z',
        ' BCZ', 'Z BC'
    ),
    'yZ', 'y'
)
