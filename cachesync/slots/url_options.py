"""The options of a Redis URL, such as `socket_timeout` in `redis://host?socket_timeout=0.5`.

redis-py accepts any option and most values, and fails with them on the first command, or never: with a
timeout of `nan`, every command times out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from cachesync.mistakes import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_SECONDS: Final = 3600.0
_MAX_INTEGER: Final = 2**31 - 1
_BOOLEANS: Final = frozenset({"0", "1", "false", "true", "no", "yes"})


def _seconds(text: str) -> str | None:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    valid = 0 < seconds <= _MAX_SECONDS
    return None if valid else f"must be a number of seconds, greater than 0 and at most {_MAX_SECONDS:.0f}"


def _integer(lowest: int) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        digits = text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_INTEGER))
        valid = digits and lowest <= int(text) <= _MAX_INTEGER
        return None if valid else f"must be an integer from {lowest} to {_MAX_INTEGER}"

    return check


def _one_of(*values: str) -> Callable[[str], str | None]:
    return lambda text: None if text in values else f"must be {' or '.join(values)}"


def _boolean(text: str) -> str | None:
    return None if text.lower() in _BOOLEANS else "must be true or false"


def _file(text: str) -> str | None:
    return None if Path(text).is_file() else "must be the path of an existing file"


def _folder(text: str) -> str | None:
    return None if Path(text).is_dir() else "must be the path of an existing directory"


def _word(text: str) -> str | None:
    return None if text.isascii() and text.isprintable() and text and " " not in text else "must be one word"


def _text(text: str) -> str | None:
    return None if text else "must not be empty"


_OPTIONS: Final[dict[str, Callable[[str], str | None]]] = {
    "client_name": _word,
    "db": _integer(0),
    "health_check_interval": _integer(0),
    "max_connections": _integer(1),
    "password": _text,
    "protocol": _one_of("2", "3"),
    "socket_connect_timeout": _seconds,
    "socket_keepalive": _boolean,
    "socket_timeout": _seconds,
    "username": _text,
}
_TLS_OPTIONS: Final[dict[str, Callable[[str], str | None]]] = {
    "ssl_ca_certs": _file,
    "ssl_ca_path": _folder,
    "ssl_cert_reqs": _one_of("required", "optional", "none"),
    "ssl_certfile": _file,
    "ssl_check_hostname": _boolean,
    "ssl_ciphers": _text,
    "ssl_keyfile": _file,
    # The numbers of TLS 1.2 and 1.3 in the protocol.
    "ssl_min_version": _one_of("771", "772"),
    "ssl_password": _text,
}
_POOL_OPTIONS: Final[dict[str, Callable[[str], str | None]]] = {"timeout": _seconds}


def option_problems(url: str, *, pool: bool) -> Iterator[str]:
    """Describe what is wrong with the options of a Redis URL and with the number of its database.

    Args:
        url: the URL, whose other parts are not checked.
        pool: whether the client has a pool with a timeout, as in a service.
    """
    parts = urlsplit(url)
    known = {
        **_OPTIONS,
        **(_TLS_OPTIONS if parts.scheme.startswith("rediss") else {}),
        **(_POOL_OPTIONS if pool else {}),
    }
    options = parse_qsl(parts.query, keep_blank_values=True)
    # redis-py takes a database that is not a number for the database 0.
    in_path = parts.path.removeprefix("/") if parts.scheme != "unix" else ""
    databases = [in_path or "0", *(value for name, value in options if name == "db")]
    if parts.scheme.endswith("+cluster") and databases != ["0"] * len(databases):
        yield "the Redis URL has a database, but a Redis Cluster has only the database 0"
    elif in_path and (problem := _integer(0)(in_path)):
        yield f"the database in the path of the Redis URL {problem}"
    seen = set()
    for name, value in options:
        if name not in known:
            hint = did_you_mean(name, known) or ("; it requires rediss://" if name in _TLS_OPTIONS else "")
            yield f"the Redis URL has an option that is not supported: {name!r}{hint}"
        elif name in seen:
            yield f"the Redis URL has the option {name!r} twice"
        else:
            seen.add(name)
            problem = known[name](value)
            if problem:
                yield f"the option {name!r} of the Redis URL {problem}"
