"""How Kafka is reached."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FilePath, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class KafkaSettings(BaseSettings):
    """The brokers and what they ask of a client, each from the variable of its name.

    All but their prefix are librdkafka's names, and mean what they mean there.

    Attributes:
        kafka_bootstrap_servers: some of the brokers.
        kafka_security_protocol: whether the connection is encrypted, and whether the client has to log in.
        kafka_sasl_mechanism, kafka_sasl_username, kafka_sasl_password: its login.
        kafka_ssl_ca_location: who vouches for the brokers, as PEM; the system's authorities where not set.
        kafka_ssl_certificate_location, kafka_ssl_key_location: the client's own certificate and key, as PEM.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

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

    @field_validator("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password")
    @classmethod
    def _login(cls, value: object, info: ValidationInfo) -> object:
        protocol = info.data.get("kafka_security_protocol", "")
        if protocol.startswith("SASL") and value is None:
            message = f"a login is needed, since KAFKA_SECURITY_PROTOCOL is {protocol}"
            raise ValueError(message)
        return _used(value, "SASL", protocol)

    @field_validator("kafka_ssl_ca_location", "kafka_ssl_certificate_location", "kafka_ssl_key_location")
    @classmethod
    def _encrypted(cls, value: object, info: ValidationInfo) -> object:
        return _used(value, "SSL", info.data.get("kafka_security_protocol", ""))

    @field_validator("kafka_ssl_key_location")
    @classmethod
    def _pair(cls, value: object, info: ValidationInfo) -> object:
        if (value is None) != (info.data.get("kafka_ssl_certificate_location") is None):
            message = "it goes with KAFKA_SSL_CERTIFICATE_LOCATION: set both, or neither"
            raise ValueError(message)
        return value

    @property
    def kafka(self) -> dict[str, str]:
        """The settings that lead a Kafka client to the brokers, as librdkafka calls them."""
        client = {}
        for name in KafkaSettings.model_fields:
            value = getattr(self, name)
            if value is not None:
                plain = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                client[name.removeprefix("kafka_").replace("_", ".")] = plain
        return client


def _used(value: object, part: str, protocol: str) -> object:
    """The value, which would change nothing under a protocol without this part."""
    if value is not None and protocol and part not in protocol:
        message = f"it has no effect while KAFKA_SECURITY_PROTOCOL is {protocol}"
        raise ValueError(message)
    return value
