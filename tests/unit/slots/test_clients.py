"""The URLs of a Redis and of a Redis Cluster."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from cachesync.errors import SettingsError
from cachesync.slots.clients import blocking_client, check_url, is_cluster, node_url, service_client

if TYPE_CHECKING:
    from collections.abc import Callable


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


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://user:p%2Fss@127.0.0.1?socket_timeout=2",
        "rediss://127.0.0.1/0?ssl_ca_certs=ca.pem",
        "unix:///run/redis.sock?db=1",
        "redis+cluster://[::1]:7000",
        "rediss+cluster://127.0.0.1",
    ],
)
def test_urls_that_a_client_can_use_are_accepted(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
@pytest.mark.parametrize(
    "open_client", [check_url, partial(service_client, seconds=1), partial(blocking_client, seconds=1)]
)
def test_an_unknown_option_in_a_url_is_a_settings_error(
    open_client: Callable[[str], object], scheme: str
) -> None:
    with pytest.raises(SettingsError, match="option that is not supported: 'bogus'"):
        open_client(f"{scheme}://127.0.0.1:1?bogus=1")


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "",
        "127.0.0.1:6379",
        "redis://:se/cret@h",
        "redis://:se#cret@h",
        "redis://h:99999",
        "redis://u:12?sekrit=1@h/0",
        "redis://u:sec[ret]@h:1/0",
        "redis://h/0?protocol=9",
        "rediss://h/0?ssl_cert_reqs=bogus",
        "redis+cluster://h?maint_notifications_config=x",
        "redis://[::1",
    ],
)
def test_the_error_of_a_malformed_url_quotes_nothing_of_it(url: str) -> None:
    with pytest.raises(SettingsError, match="percent-encode") as malformed:
        check_url(url)
    assert str(malformed.value) == (
        "not a Redis URL such as redis://user:password@host:6379/0; check its options, and percent-encode "
        "special characters in the password"
    )
    assert malformed.value.__cause__ is None


def test_decoded_responses_are_not_supported() -> None:
    with pytest.raises(SettingsError, match="'decode_responses', as slots are bytes"):
        check_url("redis://127.0.0.1?decode_responses=true")


def test_a_service_can_set_the_timeout_of_its_pool() -> None:
    check_url("redis://127.0.0.1?timeout=3")
