"""Settings of the connection to Kafka."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import Field, FilePath, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cachesync.errors import SettingsError


class KafkaSettings(BaseSettings):
    """The settings of the connection to Kafka, each from the environment variable of the same name.

    Without the prefix `kafka_`, they are librdkafka's settings and have the same meaning.

    Attributes:
        kafka_bootstrap_servers: comma-separated addresses of one or more brokers.
        kafka_security_protocol: whether the connection uses TLS, and whether the client must log in.
        kafka_sasl_mechanism: the login mechanism; required with `SASL_...`.
        kafka_sasl_username: the user name; required with `SASL_...`.
        kafka_sasl_password: the password; required with `SASL_...`.
        kafka_ssl_ca_location: PEM file with the CA certificates that sign the brokers' certificates; None for
            the system's CAs.
        kafka_ssl_certificate_location: PEM file with the client's certificate.
        kafka_ssl_key_location: PEM file with the private key of that certificate.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None, Field(validate_default=True)
    ] = None
    kafka_sasl_username: Annotated[str | None, Field(validate_default=True)] = None
    kafka_sasl_password: Annotated[SecretStr | None, Field(validate_default=True)] = None
    kafka_ssl_ca_location: FilePath | None = None
    kafka_ssl_certificate_location: FilePath | None = None
    kafka_ssl_key_location: Annotated[FilePath | None, Field(validate_default=True)] = None

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the settings from the environment.

        Args:
            given: settings that take precedence over the environment.

        Raises:
            SettingsError: a setting is missing or invalid.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            file = cls.model_config.get("env_file")
            variables = {**os.environ, **(dotenv_values(file) if isinstance(file, Path | str) else {})}
            unknown = {name for name in variables if name.lower() not in cls.model_fields}
            raise SettingsError.of(error, unknown) from None

    @field_validator("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password")
    @classmethod
    def _check_login(cls, value: object, info: ValidationInfo) -> object:
        protocol = info.data.get("kafka_security_protocol", "")
        if protocol.startswith("SASL") and value is None:
            message = f"it is required if KAFKA_SECURITY_PROTOCOL is {protocol}"
            raise ValueError(message)
        return _check_effect(value, "SASL", protocol)

    @field_validator("kafka_ssl_ca_location", "kafka_ssl_certificate_location", "kafka_ssl_key_location")
    @classmethod
    def _check_encryption(cls, value: object, info: ValidationInfo) -> object:
        return _check_effect(value, "SSL", info.data.get("kafka_security_protocol", ""))

    @field_validator("kafka_ssl_key_location")
    @classmethod
    def _check_pair(cls, value: object, info: ValidationInfo) -> object:
        if (value is None) != (info.data.get("kafka_ssl_certificate_location") is None):
            message = "set it together with KAFKA_SSL_CERTIFICATE_LOCATION, or set neither"
            raise ValueError(message)
        return value

    @property
    def kafka(self) -> dict[str, str]:
        """The connection settings of a Kafka client, by librdkafka's names."""
        client = {}
        for name in KafkaSettings.model_fields:
            value = getattr(self, name)
            if value is not None:
                plain = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                client[name.removeprefix("kafka_").replace("_", ".")] = plain
        return client


def _check_effect(value: object, part: str, protocol: str) -> object:
    """Return the value; reject it if the protocol lacks the part that the value configures."""
    if value is not None and protocol and part not in protocol:
        message = f"it has no effect while KAFKA_SECURITY_PROTOCOL is {protocol}"
        raise ValueError(message)
    return value
