"""Loading the settings of a service from the environment."""

from __future__ import annotations

import pytest

from cachesync import ServiceSettings, SettingsError


@pytest.fixture(autouse=True)
def _login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_USERNAME", "sa")
    monkeypatch.setenv("DB_PASSWORD", "secret")


def test_given_settings_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "6432")
    monkeypatch.setenv("DB_NAME", "shop")
    settings = ServiceSettings.load(service="sa", db_port=7432)
    assert (settings.service, settings.db_port, settings.db_name) == ("sa", 7432, "shop")


def test_invalid_settings_are_named_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DB_PASSWORD")
    monkeypatch.setenv("DB_PORT", "port-of-shop")
    with pytest.raises(SettingsError) as raised:
        ServiceSettings.load(service="sa")
    assert "DB_PORT is invalid: " in str(raised.value)
    assert "DB_PASSWORD is not set" in str(raised.value)
    assert "port-of-shop" not in str(raised.value)
