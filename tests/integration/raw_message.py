"""Sends messages that the Python client refuses to make, with the library that it is built on."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

import confluent_kafka

# The tags of the arguments of rd_kafka_producev.
_END, _TOPIC, _PARTITION, _VALUE, _KEY, _FLAGS, _TIMESTAMP, _HEADERS = 0, 1, 3, 4, 5, 7, 8, 10
_COPY: Final = 2
_SECONDS: Final = 30


def send(
    bootstrap_servers: str,
    topic: str,
    headers: list[tuple[bytes, bytes]],
    *,
    key: bytes | None = b"1",
    value: bytes | None = b"{}",
    timestamp: int = 0,
) -> None:
    """Send a message to partition 0 of a topic, with header names that can be any bytes.

    Args:
        bootstrap_servers: the broker.
        topic: the topic.
        headers: the headers.
        key: the key.
        value: the value.
        timestamp: the message's time in milliseconds; 0 for now.
    """
    (path,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka*")
    library = ctypes.CDLL(str(path))
    for function in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(library, function).restype = ctypes.c_void_p
    problem = ctypes.create_string_buffer(512)
    settings = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(settings, b"bootstrap.servers", bootstrap_servers.encode(), problem, 512)
    producer = ctypes.c_void_p(library.rd_kafka_new(0, settings, problem, 512))
    assert producer, problem.value
    listed = ctypes.c_void_p(library.rd_kafka_headers_new(len(headers)))
    size, tag = ctypes.c_ssize_t, ctypes.c_int
    for name, text in headers:
        library.rd_kafka_header_add(listed, name, size(len(name)), text, size(len(text)))
    error = library.rd_kafka_producev(
        producer,
        *(tag(_TOPIC), topic.encode()),
        *(tag(_PARTITION), ctypes.c_int32(0)),
        *(tag(_VALUE), value, ctypes.c_size_t(len(value or b""))),
        *(tag(_KEY), key, ctypes.c_size_t(len(key or b""))),
        *(tag(_FLAGS), tag(_COPY)),
        *(tag(_TIMESTAMP), ctypes.c_int64(timestamp)),
        *(tag(_HEADERS), listed),
        tag(_END),
    )
    assert error == 0
    assert library.rd_kafka_flush(producer, 1000 * _SECONDS) == 0
    library.rd_kafka_destroy(producer)
