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
        f"rediss://127.0.0.1/0?ssl_ca_certs={__file__}&ssl_min_version=772&ssl_cert_reqs=required",
        "redis://h/15?protocol=3&client_name=sa&max_connections=4&health_check_interval=0&socket_keepalive=yes",
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
        "redis://[::1",
        "redis://h/0#fragment",
        "http://",
        "unix://",
    ],
)
def test_the_error_of_a_malformed_url_quotes_nothing_of_it(url: str) -> None:
    with pytest.raises(SettingsError, match="percent-encode") as malformed:
        check_url(url)
    assert str(malformed.value) == (
        "not a Redis URL such as redis://user:password@host:6379/0; percent-encode special characters in the "
        "password"
    )
    assert malformed.value.__cause__ is None


NUMBER_OF_SECONDS = "must be a number of seconds, greater than 0 and at most 3600"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("?socket_timeout=nan", f"the option 'socket_timeout' of the Redis URL {NUMBER_OF_SECONDS}"),
        ("?socket_timeout=inf", NUMBER_OF_SECONDS),
        ("?socket_timeout=-1", NUMBER_OF_SECONDS),
        ("?socket_timeout=0", NUMBER_OF_SECONDS),
        ("?socket_timeout=", NUMBER_OF_SECONDS),
        ("?socket_timeout=fast", NUMBER_OF_SECONDS),
        ("?socket_connect_timeout=nan", f"'socket_connect_timeout' of the Redis URL {NUMBER_OF_SECONDS}"),
        ("?timeout=nan", f"'timeout' of the Redis URL {NUMBER_OF_SECONDS}"),
        ("?max_connections=0", "'max_connections' of the Redis URL must be an integer from 1 to 2147483647"),
        ("?max_connections=4.0", "'max_connections' of the Redis URL must be an integer"),
        ("?health_check_interval=nan", "'health_check_interval' of the Redis URL must be an integer from 0"),
        ("?db=-1", "'db' of the Redis URL must be an integer from 0"),
        (f"?db={'9' * 5000}", "'db' of the Redis URL must be an integer from 0"),
        ("/one", "the database in the path of the Redis URL must be an integer from 0 to 2147483647"),
        ("/1/2", "the database in the path of the Redis URL must be an integer from 0 to 2147483647"),
        ("?protocol=9", "'protocol' of the Redis URL must be 2 or 3"),
        ("?socket_keepalive=maybe", "'socket_keepalive' of the Redis URL must be true or false"),
        ("?client_name=a%20b", "'client_name' of the Redis URL must be one word"),
        ("?db=1&db=2", "the Redis URL has the option 'db' twice"),
        ("?decode_responses=true", "the Redis URL has an option that is not supported: 'decode_responses'"),
        ("?socket_timeot=1", "not supported: 'socket_timeot'; did you mean 'socket_timeout'?"),
        (
            "?socket_timeout=nan&bogus=1",
            f"{NUMBER_OF_SECONDS}; the Redis URL has an option that is not supported: 'bogus'",
        ),
    ],
)
def test_error_names_each_option_and_what_its_value_must_be(options: str, problem: str) -> None:
    with pytest.raises(SettingsError) as invalid:
        check_url(f"redis://127.0.0.1{options}")
    assert problem in str(invalid.value)
    assert "not a Redis URL" not in str(invalid.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "rediss://h?ssl_cert_reqs=bogus",
            "'ssl_cert_reqs' of the Redis URL must be required or opt",
        ),
        (
            "rediss://h?ssl_ca_certs=/nowhere",
            "'ssl_ca_certs' of the Redis URL must be the path of an ",
        ),
        (
            "rediss://h?ssl_ca_path=/nowhere",
            "'ssl_ca_path' of the Redis URL must be the path of an exis",
        ),
        ("redis://h?ssl_ca_certs=ca.pem", "not supported: 'ssl_ca_certs'; it requires rediss://"),
        ("redis+cluster://h?socket_timeout=nan", f"'socket_timeout' of the Redis URL {NUMBER_OF_SECONDS}"),
        ("redis+cluster://h/1", "a Redis Cluster has only the database 0"),
        ("redis+cluster://h?db=1", "a Redis Cluster has only the database 0"),
        ("unix:///run/redis.sock?db=k", "'db' of the Redis URL must be an integer from 0"),
    ],
)
def test_options_are_those_of_the_kind_of_redis(url: str, problem: str) -> None:
    with pytest.raises(SettingsError) as invalid:
        check_url(url)
    assert problem in str(invalid.value)


def test_a_service_can_set_the_timeout_of_its_pool() -> None:
    check_url("redis://127.0.0.1?timeout=3")
