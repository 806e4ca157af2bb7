"""Tools that are not available as Python packages: Java, and the jars that Maven downloads once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from local.errors import MissingToolError
from local.lock import one_at_a_time
from local.process import run

if TYPE_CHECKING:
    from collections.abc import Callable

_JAVA_MAJOR = 17
_JAVA_PACKAGES = ("openjdk-17-jre-headless", "openjdk-21-jre-headless", "openjdk-25-jre-headless")


def require_java() -> str:
    """Return the path of a `java` that can run Kafka; install it if possible.

    Raises:
        MissingToolError: there is none, and it cannot be installed automatically.
    """
    missing = f"Java {_JAVA_MAJOR} or newer is missing; install a JRE so that `java` is on the PATH"
    _install_unless(_java_is_new_enough, missing, *_JAVA_PACKAGES)
    return _which("java")


def require_maven() -> str:
    """Return the path of `mvn`; install it if possible.

    Raises:
        MissingToolError: there is none, and it cannot be installed automatically.
    """
    return _require("mvn", "Maven is missing; install it so that `mvn` is on the PATH", "maven")


def require_wrk() -> str:
    """Return the path of `wrk`, with which the benchmarks send HTTP requests; install it if possible.

    Raises:
        MissingToolError: there is none, and it cannot be installed automatically.
    """
    missing = "wrk is missing; install it so that `wrk` is on the PATH (Debian: apt-get install wrk)"
    return _require("wrk", missing, "wrk")


def require_promtool(parent: Path) -> str:
    """Return the path of `promtool`, which checks metrics and tests alert rules.

    If there is none, Debian's package is unpacked in `parent`; installing it would start a server.

    Raises:
        MissingToolError: there is none, and the package cannot be downloaded.
    """
    folder = parent / "prometheus"
    installed = shutil.which("promtool", path=f"{os.environ.get('PATH', '')}:{folder / 'usr' / 'bin'}")
    if installed is not None:
        return installed
    if shutil.which("apt-get") is None:
        message = "promtool is missing; install Prometheus so that `promtool` is on the PATH"
        raise MissingToolError(message)
    if _can_install():
        _apt_get("update")
    with tempfile.TemporaryDirectory(dir=parent) as download:
        run(["apt-get", "-qq", "download", "prometheus"], cwd=Path(download))
        (package,) = Path(download).glob("*.deb")
        run(["dpkg", "-x", str(package), str(folder)])
    return str(folder / "usr" / "bin" / "promtool")


def fetch_jars(parent: Path, pom: Path, **properties: str) -> Path:
    """Return a directory in `parent` with the jars that `pom` declares; Maven fills it once per version.

    Args:
        parent: where the directories of all versions are.
        pom: the Maven project.
        properties: values of properties of the project that are not those in the file.
    """
    changes = [f"-D{name}={value}" for name, value in properties.items()]
    folder = parent / hashlib.sha256(pom.read_bytes() + "".join(changes).encode()).hexdigest()[:16]
    if folder.exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}-{os.getpid()}")
    command = [require_maven(), "-q", "-B", "-f", str(pom), *changes, "dependency:copy-dependencies"]
    run([*command, "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}"])
    with suppress(OSError):  # a concurrent run was faster
        unfinished.rename(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _require(program: str, missing: str, package: str) -> str:
    _install_unless(lambda: shutil.which(program) is not None, missing, package)
    return _which(program)


def _install_unless(is_there: Callable[[], bool], missing: str, *packages: str) -> None:
    """Install the first available package; if that is impossible, raise an error with the text `missing`."""
    # Other processes of this user wait, since only one apt-get can run at a time.
    with one_at_a_time(Path(tempfile.gettempdir()) / f"db-cache-sync-tools-{os.getuid()}.lock"):
        if is_there():
            return
        if not _can_install():
            raise MissingToolError(missing)
        _apt_get("update")
        _apt_get("install", next(filter(_is_packaged, packages), packages[0]))


def _which(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        message = f"`{name}` is not on the PATH, although its package is installed"
        raise MissingToolError(message)
    return path


def _java_is_new_enough() -> bool:
    java = shutil.which("java")
    if java is None:
        return False
    output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', output)
    return found is not None and int(found[1]) >= _JAVA_MAJOR


def _can_install() -> bool:
    return os.getuid() == 0 and shutil.which("apt-get") is not None


def _is_packaged(package: str) -> bool:
    return subprocess.run(["apt-cache", "show", package], capture_output=True, check=False).returncode == 0


def _apt_get(*arguments: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "-qq", "-y", "--no-install-recommends", *arguments], environment=environment)
