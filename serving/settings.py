"""What a service takes from its environment and its `.env` file."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from cachesync.errors import SettingsError
from cachesync.service.settings import Port, ServiceSettings


class Settings(ServiceSettings):
    """The library's settings, and those of HTTP.

    Attributes:
        listen_address: where it listens; `0.0.0.0` in a container.
        port: the port it listens on.
        workers: how many processes answer.
        body_limit: the most bytes of a request's body.
        page_limit: the most rows of a page.
    """

    listen_address: str = "127.0.0.1"
    port: Port
    workers: Annotated[int, Field(gt=0, le=256)] = 1
    body_limit: Annotated[int, Field(gt=0, le=2**26)] = 2**18
    page_limit: Annotated[int, Field(gt=0, le=10_000)] = 1000


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(kind: type[AnySettings]) -> AnySettings:
    """Read a service's settings.

    Raises:
        SystemExit: one is missing or bad; the text names the variable, and never its value.
    """
    file = kind.model_config.get("env_file")
    try:
        return kind()
    except ValidationError as error:
        message = f"cannot start: {SettingsError.of(error)} (read from the environment and {file})"
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot start: cannot read {file}: {error}"
    raise SystemExit(message)
