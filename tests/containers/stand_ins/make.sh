#!/bin/sh
# Builds stand-ins for the images that the Dockerfiles and docker-compose.yml use, under the same tags, for when no
# image registry can be reached. For tests only: they show that the project's files work on such a system, but they do
# not have the content of the real images. Images built on them contain the build host's certificates and must not be
# shipped.
set -eu
cd "$(dirname "$0")"
repository=$(cd ../../.. && pwd)
export DOCKER_BUILDKIT=0 # the classic builder: BuildKit would query a registry for each FROM

have() {
    docker image inspect "$1" >/dev/null 2>&1
}

slim=$(awk '/^FROM / { print $2; exit }' "$repository/serving/Dockerfile")

if ! have "$slim"; then
    made=$(mktemp -d)
    trap 'rm -rf "$made"' EXIT
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$made/root" >"$made/log" \
        || { tail "$made/log"; exit 1; }
    ln -s python3 "$made/root/usr/bin/python"
    rm -rf "$made"/root/var/lib/apt/lists/* "$made"/root/var/cache/apt/archives/*.deb
    cp /etc/ssl/certs/ca-certificates.crt "$made/root/etc/ssl/certs/"
    tar -C "$made/root" --exclude=./dev --exclude=./proc --exclude=./sys -c . \
        | docker import --change 'CMD ["python3"]' --change 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - "$slim"
fi

for name in postgres redis apache/kafka haproxy; do
    image=$(awk -v name="$name:" '$1 == "image:" && index($2, name) == 1 { print $2; exit }' "$repository/docker-compose.yml")
    have "$image" && continue
    folder=${name#apache/}
    if [ "$folder" = kafka ]; then
        # The jars that the tests use, including the class that turns the environment into properties. There is a folder
        # for each version that was downloaded, and can be several for one. Only their owner can read them.
        rm -rf kafka/jars
        mkdir kafka/jars
        for jar in "$repository"/.local/kafka/*/"kafka-clients-${image#*:}.jar"; do
            install -m 644 "${jar%/*}"/*.jar kafka/jars/
            break
        done
    fi
    docker build --quiet --build-arg "BASE=$slim" --tag "$image" "$folder"
done
