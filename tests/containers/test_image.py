from __future__ import annotations

import subprocess

import pytest

from tests.containers.conftest import IMAGE, docker


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("program", ["gcc", "cc", "pip", "/opt/venv/bin/pip"])
def test_services_image_contains_no_compiler_and_no_pip(program: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        docker("run", "--rm", IMAGE, "sh", "-c", f"command -v {program}")


@pytest.mark.usefixtures("built")
def test_services_run_as_non_root_and_cannot_write_to_their_image() -> None:
    assert docker("run", "--rm", IMAGE, "id", "-u") == "10001"
    assert docker("run", "--rm", IMAGE, "find", "/app", "/opt/venv", "-writable", "-not", "-type", "l") == ""
