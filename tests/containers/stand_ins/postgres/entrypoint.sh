#!/bin/sh
# Like the official image: the first start creates the cluster and runs the scripts over a Unix socket.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    password=$(mktemp)
    echo "$POSTGRES_PASSWORD" >"$password"
    initdb --pgdata "$PGDATA" --username postgres --pwfile "$password" --auth-local trust \
        --auth-host scram-sha-256 --encoding UTF8 --locale C
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    pg_ctl --wait start -o "-c listen_addresses='' -c unix_socket_directories=/tmp"
    psql -h /tmp -U postgres -c "CREATE DATABASE $POSTGRES_DB"
    for file in /docker-entrypoint-initdb.d/*.sql; do
        psql -h /tmp -v ON_ERROR_STOP=1 --no-psqlrc -U postgres -d "$POSTGRES_DB" -f "$file"
    done
    pg_ctl --wait --mode fast stop
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
