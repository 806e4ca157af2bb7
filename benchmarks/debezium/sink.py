"""A bare sink: consumes a topic and SETs each value in a Redis, without comparing versions.

`python -m benchmarks.debezium.sink BOOTSTRAP_SERVERS TOPIC REDIS_PORT SERVICE` runs until it is terminated.
It does as little as a consumer can: commands are made by hand, and a batch is one round trip.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

from confluent_kafka import Consumer

from local.ports import HOST

_BATCH: Final = 5000
_POLL_SECONDS: Final = 0.05
_OK: Final = b"+OK\r\n"


def main(bootstrap_servers: str, topic: str, port: int, service: str) -> None:
    """Follow the topic."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"sink-{service}",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 5,
            "topic.metadata.refresh.interval.ms": 1000,
        }
    )
    consumer.subscribe([topic])
    prefix = f"{service}:student:".encode()
    with socket.create_connection((HOST, port)) as cache:
        cache.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            # `consume` would wait until the batch is full.
            first = consumer.poll(_POLL_SECONDS)
            if first is None:
                continue
            commands = []
            for message in [first, *consumer.consume(_BATCH, timeout=0)]:
                key, value = message.key(), message.value()
                if message.error() is None and key is not None and value is not None:
                    slot = prefix + key
                    commands.append(
                        b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                        % (len(slot), slot, len(value), value)
                    )
            cache.sendall(b"".join(commands))
            left = len(_OK) * len(commands)
            while left:
                received = cache.recv(min(left, 65536))
                assert received, "Redis closed the connection"
                left -= len(received)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
