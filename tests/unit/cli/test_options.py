"""The options with the Redis URL of each service and with the Kafka brokers."""

from __future__ import annotations

import pytest

from cachesync.cli.options import kafka_client, redis_clients
from cachesync.errors import SettingsError
from cachesync.slots.clients import primaries

ONE = "sa=redis://one:1/0"


@pytest.mark.parametrize(
    "given",
    [
        ["sa=redis://one:1/0", "sb=redis://two:2/0"],
        ["sa=redis://one:1/0,sb=redis://two:2/0"],
    ],
)
def test_each_service_gets_a_client_for_its_own_redis(given: list[str]) -> None:
    with redis_clients(given) as clients:
        hosts = {
            name: primaries(client)[None].connection_pool.connection_kwargs["host"]
            for name, client in clients.items()
        }
    assert hosts == {"sa": "one", "sb": "two"}


@pytest.mark.parametrize("wrong", ["redis://one:1/0", "sa=", "=redis://one", "sa=one:1"])
def test_option_without_a_service_or_a_url_is_rejected(wrong: str) -> None:
    with (
        pytest.raises(SettingsError, match=r"value 1 of --redis .* is not SERVICE=URL"),
        redis_clients([wrong]),
    ):
        pytest.fail("it was accepted")


@pytest.mark.parametrize("wrong", ["sb=:secret@two:2", "sb=redis://two,secret@two:2", "secret"])
def test_error_gives_the_position_of_a_value_and_not_its_password(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"value [23] of --redis") as raised, redis_clients([ONE, wrong]):
        pytest.fail("it was accepted")
    assert "secret" not in str(raised.value)


def test_all_invalid_values_are_reported_with_one_line_each() -> None:
    values = [ONE, "sb", "sc=redis://h?socket_timeout=nan", "sa=redis://other:1"]
    with pytest.raises(SettingsError) as raised, redis_clients(values):
        pytest.fail("they were accepted")
    second, third, fourth = str(raised.value).splitlines()
    assert second.startswith("value 2 of --redis (CACHESYNC_REDIS_URLS) is not SERVICE=URL")
    assert third.startswith("value 3 of --redis (CACHESYNC_REDIS_URLS): the option 'socket_timeout' of the")
    assert fourth.endswith("is another Redis for 'sa'; a service has one cache")


def test_comma_in_a_password_is_written_as_an_escape() -> None:
    with redis_clients(["sb=redis://:pa%2Css@two:2"]) as clients:
        assert primaries(clients["sb"])[None].connection_pool.connection_kwargs["password"] == "pa,ss"


@pytest.mark.parametrize("empty", ["", " "])
def test_empty_list_of_brokers_is_rejected_before_connecting(empty: str) -> None:
    with pytest.raises(SettingsError, match=r"^--bootstrap-servers \(KAFKA_BOOTSTRAP_SERVERS\) is empty"):
        kafka_client(empty)
