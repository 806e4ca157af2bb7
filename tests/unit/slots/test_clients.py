"""The URLs of a Redis Cluster."""

from __future__ import annotations

import pytest

from cachesync.slots.clients import is_cluster, node_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+cluster://one:1", True),
        ("rediss+cluster://one:1", True),
        ("redis://one:1/0", False),
        ("rediss://one:1/0", False),
        ("unix:///run/redis.sock", False),
    ],
)
def test_scheme_identifies_a_cluster(url: str, *, expected: bool) -> None:
    assert is_cluster(url) is expected


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        ("redis+cluster://one:1", "two", "redis://two:7"),
        ("redis+cluster://one", "10.0.0.2", "redis://10.0.0.2:7"),
        (
            "rediss+cluster://user:p%40ss@one:1?ssl_ca_certs=ca.pem",
            "two",
            "rediss://user:p%40ss@two:7?ssl_ca_certs=ca.pem",
        ),
        ("redis+cluster://[::1]:1", "fd00::2", "redis://[fd00::2]:7"),
    ],
)
def test_node_url_keeps_the_login_and_options_of_the_cluster(url: str, host: str, expected: str) -> None:
    assert node_url(url, host, 7) == expected
