"""Proxies on the connections between the components of the system."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from local.ports import free_port
from local.settings import Settings
from local.system import System
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


class Links:
    """Creates a proxy for each connection between components; an instance is the `link` of a `System`.

    Attributes:
        proxies: the proxies, by the names of client and server.
    """

    def __init__(self) -> None:
        self.proxies: dict[tuple[str, str], Proxy] = {}
        self._open = ExitStack()

    def __call__(self, user: str, part: str, port: int) -> int:
        if (user, part) not in self.proxies:
            self.proxies[user, part] = self._open.enter_context(Proxy(port))
        return self.proxies[user, part].port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def linked_system(state: Path, console: Console, links: Links) -> System:
    """Return the whole system, not yet started, on free ports, with proxies between its components."""
    ports = {name: free_port() for name in Settings.model_fields if name.endswith("_port")}
    return System(Settings.model_validate({"state": state, **ports}), console, links)
