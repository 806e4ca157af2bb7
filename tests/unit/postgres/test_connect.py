"""Addresses of a database to which no connection can even be tried."""

from __future__ import annotations

import pytest

from cachesync.errors import SettingsError
from cachesync.postgres.connect import connect


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:se/cret@127.0.0.1/x",
        "postgresql://u:cret@h:abc/x",
        "postgresql://u:cret@[::1/x",
        "postgresql://u:cret@127.0.0.1:99999/x",
        "postgresql://u:cret@a..b/x",
        f"postgresql://u:cret@{'a' * 70}/x",
    ],
)
async def test_an_invalid_address_is_a_settings_error_that_quotes_nothing_of_it(dsn: str) -> None:
    with pytest.raises(SettingsError, match="invalid database address") as invalid:
        await connect(dsn, "test")
    assert "cret" not in str(invalid.value)
    assert "'se'" not in str(invalid.value)
    assert invalid.value.__cause__ is None


async def test_a_dsn_of_another_kind_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="invalid database address: invalid DSN: scheme is expected"):
        await connect("mysql://127.0.0.1/x", "test")
