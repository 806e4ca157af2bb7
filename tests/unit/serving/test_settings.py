"""Settings come from the environment and a `.env` file; an invalid one is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from pydantic_settings import SettingsConfigDict

from cachesync.service.settings import Port  # noqa: TC001 - pydantic reads it
from serving.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Settings]:
    names = "DB_USERNAME DB_PASSWORD PORT METRICS_PORT WORKERS DB_PORT SERVICE BODY_LIMIT"
    for name in names.split():
        monkeypatch.delenv(name, raising=False)

    class SettingsOfX(Settings):
        model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(env_file=tmp_path / ".env")
        service: str = "x"
        port: Port = 8090
        metrics_port: Port = 9190

    return SettingsOfX


def write_env(kind: type[Settings], text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    (kind.model_config["env_file"]).write_bytes(content)  # type: ignore[union-attr]


def complaint(kind: type[Settings]) -> str:
    with pytest.raises(SystemExit) as caught:
        load_settings(kind)
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


def test_credentials_come_from_the_env_file(kind: type[Settings]) -> None:
    write_env(kind, "DB_USERNAME=sa\nDB_PASSWORD=secret\n")
    settings = load_settings(kind)
    assert (settings.db_username, settings.db_password.get_secret_value()) == ("sa", "secret")
    assert settings.port == 8090
    assert "secret" not in repr(settings)


def test_environment_overrides_the_env_file(kind: type[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    write_env(kind, "DB_USERNAME=sa\nDB_PASSWORD=secret\n")
    monkeypatch.setenv("DB_USERNAME", "other")
    monkeypatch.setenv("PORT", "9000")
    settings = load_settings(kind)
    assert (settings.db_username, settings.port) == ("other", 9000)


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "PLAIN", "SASL_PASSWORD": "secret"},
         "KAFKA_SASL_USERNAME is invalid: it is required if KAFKA_SECURITY_PROTOCOL is SASL_SSL ("),
        ({"SASL_PASSWORD": "secret"},
         "KAFKA_SASL_PASSWORD is invalid: it has no effect while KAFKA_SECURITY_PROTOCOL is PLAINTEXT ("),
        ({"SECURITY_PROTOCOL": "SASL_PLAINTEXT", "SSL_CA_LOCATION": __file__},
         "KAFKA_SSL_CA_LOCATION is invalid: it has no effect while KAFKA_SECURITY_PROTOCOL is SASL_"),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_CERTIFICATE_LOCATION": __file__},
         "KAFKA_SSL_KEY_LOCATION is invalid: set it together with KAFKA_SSL_CERTIFICATE_LOCATION, or set "),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_CA_LOCATION": "/nowhere"},
         "KAFKA_SSL_CA_LOCATION must be the path of an existing file"),
        ({"SECURITY_PROTOCOL": "TLS"},
         "KAFKA_SECURITY_PROTOCOL must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
    ],
)  # fmt: skip
def test_incomplete_or_contradictory_kafka_security_is_rejected(
    kind: type[Settings], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], text: str
) -> None:
    write_env(kind, "DB_USERNAME=sa\nDB_PASSWORD=secret\n")
    for name, value in variables.items():
        monkeypatch.setenv(f"KAFKA_{name}", value)
    assert text in complaint(kind)


def test_missing_setting_is_named(kind: type[Settings]) -> None:
    write_env(kind, "DB_PASSWORD=secret\n")
    assert complaint(kind).startswith("cannot start: DB_USERNAME is not set (")


def test_empty_setting_counts_as_missing(kind: type[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "")
    monkeypatch.setenv("DB_USERNAME", "")
    assert "DB_USERNAME is not set; DB_PASSWORD is not set" in complaint(kind)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "http", "must be an integer"),
        ("PORT", "8090.5", "must be an integer"),
        ("PORT", "70000", "must be less than 65536"),
        ("PORT", "9" * 5000, "has too many digits"),
        ("WORKERS", "0", "must be greater than 0"),
        ("WORKERS", "1000", "must be at most 256"),
        ("BODY_LIMIT", "-1", "must be greater than 0"),
        ("REDIS_URL", "http://", "is invalid: not a Redis URL such as redis://user:password@host:6379/0"),
    ],
)
def test_invalid_setting_is_named_with_what_it_must_be(
    kind: type[Settings], monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    write_env(kind, "DB_USERNAME=sa\nDB_PASSWORD=secret\n")
    monkeypatch.setenv(name, value)
    assert f"cannot start: {name} {words}" in complaint(kind)


def test_misspelled_name_of_a_missing_setting_is_pointed_out(
    kind: type[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_env(kind, "DB_USER_NAME=sa\n")
    monkeypatch.setenv("DB_PASWORD", "secret")
    assert complaint(kind).startswith(
        "cannot start: DB_USERNAME is not set, but DB_USER_NAME is; DB_PASSWORD is not set, but DB_PASWORD"
    )


def test_metrics_port_must_differ_from_the_main_port(
    kind: type[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_env(kind, "DB_USERNAME=sa\nDB_PASSWORD=secret\n")
    monkeypatch.setenv("METRICS_PORT", "8090")
    assert "METRICS_PORT is invalid: it is also PORT" in complaint(kind)


def test_env_file_that_is_not_text_is_named(kind: type[Settings]) -> None:
    write_env(kind, b"DB_USERNAME=\xff\nDB_PASSWORD=secret\n")
    assert ".env" in complaint(kind)
