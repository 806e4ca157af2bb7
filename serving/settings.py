"""The settings of a service, from its environment and its `.env` file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field, field_validator

from cachesync.errors import SettingsError
from cachesync.service.settings import Milliseconds, Port, ServiceSettings

if TYPE_CHECKING:
    from pydantic import ValidationInfo


class Settings(ServiceSettings):
    """The settings of the library and those of the HTTP server.

    Attributes:
        listen_address: address to listen on; `0.0.0.0` in a container.
        port: port to listen on.
        metrics_port: second port, for `/metrics` and the health checks only.
        workers: number of worker processes.
        connection_limit: maximum number of connections per worker process.
        client_timeout_ms: maximum time for a client to send the head or the body of a request, and to read a
            response, in milliseconds.
        queue_ms: how long requests may take under overload before others are refused, in milliseconds.
        body_limit: maximum size of a request body in bytes.
        page_limit: maximum number of rows per page.
    """

    listen_address: str = "127.0.0.1"
    port: Port
    metrics_port: Port
    workers: Annotated[int, Field(gt=0, le=256)] = 1
    connection_limit: Annotated[int, Field(gt=0, le=100_000)] = 1000
    client_timeout_ms: Milliseconds = 20_000
    queue_ms: Milliseconds = 200
    body_limit: Annotated[int, Field(gt=0, le=2**26)] = 2**18
    page_limit: Annotated[int, Field(gt=0, le=10_000)] = 1000

    @field_validator("metrics_port")
    @classmethod
    def _check_metrics_port(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("port"):
            message = "it is also PORT"
            raise ValueError(message)
        return value


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(kind: type[AnySettings]) -> AnySettings:
    """Read the settings of a service.

    Args:
        kind: the settings class; its `model_config` names the `.env` file.

    Raises:
        SystemExit: a setting is missing or invalid. The message names the variable, but not its value.
    """
    file = kind.model_config.get("env_file")
    try:
        return kind.load()
    except SettingsError as error:
        message = f"cannot start: {error} (read from the environment and {file})"
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot start: cannot read {file}: {error}"
    raise SystemExit(message)
