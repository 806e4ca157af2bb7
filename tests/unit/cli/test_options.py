"""The option with the Redis URL of each service."""

from __future__ import annotations

import pytest

from cachesync.cli.options import redis_clients
from cachesync.errors import SettingsError
from cachesync.slots.clients import primaries


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
    with pytest.raises(SettingsError, match="is not SERVICE=URL"), redis_clients([wrong]):
        pytest.fail("it was accepted")
