"""The settings of the DAGs, from Airflow's environment."""

from __future__ import annotations

import pytest
from cachesync_airflow.settings import AirflowSettings

from cachesync.errors import SettingsError


@pytest.fixture(autouse=True)
def _caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHESYNC_CACHES", "sa, sb")


def test_caches_are_separated_by_commas() -> None:
    assert AirflowSettings.load().caches == ("sa", "sb")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CACHES", "", "is not set"),
        ("CACHES", "SA,SB", "must be the name of a service: a lowercase letter, then lowercase letters, "),
        ("CACHES", "sa,,sb", "must be the name of a service"),
        ("CONSUMERS_PER_CACHE", "two", "must be an integer"),
        ("CONSUMERS_PER_CACHE", "0", "must be greater than 0"),
        ("CHANGE_LOG_RETENTION_DAYS", "0", "must be at least 1"),
        ("DEAD_LETTER_BACKOFF_SECONDS", "nan", "must be "),
        ("DEAD_LETTER_BACKOFF_SECONDS", "soon", "must be a number"),
    ],
)
def test_invalid_setting_is_named_once_with_what_it_must_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"CACHESYNC_{name}", value)
    with pytest.raises(SettingsError) as raised:
        AirflowSettings.load()
    assert str(raised.value).startswith(f"CACHESYNC_{name} {words}")
    assert ";" not in str(raised.value)


def test_all_invalid_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHESYNC_CACHES")
    monkeypatch.setenv("CACHESYNC_CACHE", "sa")
    monkeypatch.setenv("CACHESYNC_DEAD_LETTER_ATTEMPTS", "0")
    with pytest.raises(SettingsError) as raised:
        AirflowSettings.load()
    assert str(raised.value) == (
        "CACHESYNC_DEAD_LETTER_ATTEMPTS must be at least 1; "
        "CACHESYNC_CACHES is not set, but CACHESYNC_CACHE is"
    )
