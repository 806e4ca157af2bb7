#!/bin/bash
# Like the official image: its own class, which is in Kafka's jars, creates the properties from the environment and
# formats the data folder. It fails if the folder is already formatted, which is not an error.
set -eu
mkdir -p /tmp/default /tmp/mounted
touch /tmp/default/{server,log4j2,tools-log4j2}.{properties,yaml}
java="java $KAFKA_HEAP_OPTS -cp /opt/kafka/libs/*"
set -f # the class path is not a glob pattern
said=$($java kafka.docker.KafkaDockerWrapper setup --default-configs-dir /tmp/default \
    --mounted-configs-dir /tmp/mounted --final-configs-dir /etc/kafka 2>&1) \
    || grep -i 'already formatted' <<<"$said" || { echo "$said"; exit 1; }
exec $java kafka.Kafka /etc/kafka/server.properties
