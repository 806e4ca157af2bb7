"""Loading the settings of a service from the environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

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
    assert "DB_PORT must be an integer; " in str(raised.value)
    assert "DB_PASSWORD is not set" in str(raised.value)
    assert "port-of-shop" not in str(raised.value)


def test_name_of_a_service_is_described_in_words() -> None:
    with pytest.raises(SettingsError) as raised:
        ServiceSettings.load(service="My_Service")
    assert str(raised.value) == (
        "SERVICE must be the name of a service: a lowercase letter, then lowercase letters, digits or -, at "
        "most 40 in total"
    )


@pytest.mark.parametrize("url", ["garbage", "redis://:se/cret@h", "redis://:secret@h?bogus=1"])
def test_an_invalid_redis_url_is_named_without_its_value(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SettingsError, match=r"^REDIS_URL is invalid: ") as raised:
        ServiceSettings.load(service="sa")
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize("name", ["DB_HOST", "DB_NAME", "DB_USERNAME", "DB_PASSWORD"])
def test_bytes_that_are_not_utf8_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "a\udce9")
    with pytest.raises(SettingsError, match=f"^{name} is invalid: .* not part of UTF-8"):
        ServiceSettings.load(service="sa")


def test_passwords_are_not_in_the_repr() -> None:
    settings = ServiceSettings.load(service="sa", redis_url="redis://:hunter2@127.0.0.1")
    assert "hunter2" not in repr(settings)
    assert "secret" not in repr(settings)


def test_the_constructor_does_not_quote_invalid_values() -> None:
    with pytest.raises(ValidationError) as raised:
        ServiceSettings(service="sa", redis_url="http://:hunter2@127.0.0.1")
    assert "hunter2" not in str(raised.value)
