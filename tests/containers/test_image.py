from __future__ import annotations

import subprocess

import pytest

from tests.containers.conftest import IMAGE, docker


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("program", ["gcc", "cc", "pip", "/opt/venv/bin/pip"])
def test_the_image_of_the_services_has_nothing_to_build_or_install_with(program: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        docker("run", "--rm", IMAGE, "sh", "-c", f"command -v {program}")


@pytest.mark.usefixtures("built")
def test_the_services_are_not_root_and_own_nothing_in_their_image() -> None:
    assert docker("run", "--rm", IMAGE, "id", "-u") == "10001"
    assert docker("run", "--rm", IMAGE, "find", "/app", "/opt/venv", "-writable", "-not", "-type", "l") == ""
