"""The proxy between components, in front of an echo server."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from local.ports import HOST, free_port
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with socket.create_server((HOST, free_port())) as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        with Proxy(server.getsockname()[1]) as running:
            yield running


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as connection:
        yield connection


def echo(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    with closing(connection):
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except ConnectionResetError:
            return


def connect(proxy: Proxy) -> socket.socket:
    connection = socket.create_connection((HOST, proxy.port))
    connection.settimeout(10)
    return connection


def asked(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(100)


def assert_nothing_comes(client: socket.socket) -> None:
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(100)
    client.settimeout(10)


def test_all_data_is_forwarded(client: socket.socket) -> None:
    text = b"x" * 3_000_000
    threading.Thread(target=client.sendall, args=(text,)).start()
    received = 0
    while received < len(text):
        received += len(client.recv(1 << 20))
    assert asked(client, b"more") == b"more"


def test_cut_resets_existing_and_new_connections_until_mended(proxy: Proxy, client: socket.socket) -> None:
    assert asked(client, b"before") == b"before"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with connect(proxy) as another, pytest.raises(ConnectionResetError):
        another.recv(100)
    proxy.mend()
    with connect(proxy) as another:
        assert asked(another, b"after") == b"after"


@pytest.mark.parametrize("hold", [Proxy.freeze, Proxy.hold_answers])
def test_held_data_is_delivered_when_mended(proxy: Proxy, client: socket.socket, hold: object) -> None:
    assert callable(hold)
    hold(proxy)
    client.sendall(b"late")
    assert_nothing_comes(client)
    proxy.mend()
    assert client.recv(100) == b"late"


def test_held_data_is_delivered_although_the_client_has_disconnected(proxy: Proxy) -> None:
    with socket.create_server((HOST, free_port())) as server:
        proxy.target = server.getsockname()[1]
        with connect(proxy) as client:
            connection, _ = server.accept()
            proxy.freeze()
            client.sendall(b"late")
        with closing(connection):
            assert_nothing_comes(connection)
            proxy.mend()
            assert connection.recv(100) == b"late"
            assert connection.recv(100) == b""


def test_connection_is_reset_if_nothing_listens_behind_the_proxy(proxy: Proxy) -> None:
    proxy.target = free_port()
    # The reset can arrive before the client reads.
    with pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(100)
