"""Proxies on the ways between the parts of the system."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

from tests.faults.proxy import Proxy


class Links:
    """Makes a proxy for each way that the system asks for; its argument `link`.

    Attributes:
        proxies: the proxies, by the names of the user and of the part.
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
