"""The relay, or the stream of one cache, in a process of its own instead of Airflow's triggerer.

`python -m benchmarks.growth.follower relay` and `python -m benchmarks.growth.follower SERVICE` run until they
are terminated. Their connections are in the environment, like Airflow's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from typing import Any

from confluent_kafka import Consumer, Producer
from redis import Redis

from cachesync.dead_letters.sender import DeadLetterSender
from cachesync.entity import load_entities
from cachesync.relay.relay import Relay
from cachesync.slots.batch import Applier
from cachesync.stream.stream import Stream


def main(role: str) -> None:
    """Run the part."""
    part = _relay() if role == "relay" else _stream(role)
    signal.signal(signal.SIGTERM, lambda *_: part.stop())
    part.run()


def _relay() -> Relay:
    return Relay(
        os.environ["AIRFLOW_CONN_POSTGRES_CACHESYNC"],
        _kafka("cachesync"),
        load_entities(os.environ["CACHESYNC_ENTITIES"]),
        timedelta(days=1),
    )


def _stream(service: str) -> Stream:
    entities = load_entities(os.environ["CACHESYNC_ENTITIES"])
    settings = _kafka(service)
    cache = Redis.from_url(os.environ[f"AIRFLOW_CONN_REDIS_{service.upper()}"])
    letters = DeadLetterSender(lambda: Producer(_kafka("cachesync")), service, settings["group.id"])
    return Stream(
        lambda: Consumer(settings),
        Applier(cache, service, entities),
        letters,
        entities,
        service,
        settings=settings,
    )


def _kafka(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(os.environ[f"AIRFLOW_CONN_KAFKA_{name.upper()}"])["extra"]
    return settings


if __name__ == "__main__":
    main(sys.argv[1])
