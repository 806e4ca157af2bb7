"""The port on which a process serves its metrics."""

from __future__ import annotations

import socket
from urllib.request import urlopen

import pytest
from structlog.testing import capture_logs

from cachesync.errors import SettingsError
from cachesync.exporter import serve, serve_if_possible
from local.ports import HOST, free_port


def test_process_serves_its_metrics_once_however_often_it_is_asked() -> None:
    port = free_port()
    with capture_logs() as logs:
        serve(HOST, port)
        serve_if_possible(HOST, port)
    assert not logs
    with urlopen(f"http://{HOST}:{port}/", timeout=5) as response:
        assert b"cachesync_build_info{" in response.read()


def test_process_whose_port_is_taken_says_so_and_goes_on() -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with capture_logs() as logs:
            serve_if_possible(HOST, port)
        expected = f"cannot serve metrics on {HOST}:{port}: Address already in use"
        assert [(log["event"], log["error"]) for log in logs] == [("metrics are not served", expected)]
        with pytest.raises(SettingsError, match="Address already in use"):
            serve(HOST, port)
