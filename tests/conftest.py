"""The real servers that tests run against: one of each per session, started on first use."""

from __future__ import annotations

import gc
from contextlib import ExitStack, contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from shutil import disk_usage, rmtree
from typing import TYPE_CHECKING

import pytest
import typer.testing
from hypothesis import settings
from psutil import virtual_memory
from rich.console import Console
from xdist.scheduler import LoadScopeScheduling

from local.errors import LocalError
from local.kafka import Kafka
from local.postgres import Postgres
from local.redis import Redis
from local.state import claim_any
from local.tools import require_promtool
from tests.faults.links import Links, linked_system

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.remote import Producer

    from local.system import System

# A machine can be busy.
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")

# It makes the command `cachesync` of its functions for every run, which takes longer than most of the runs.
typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined] # noqa: SLF001

# The whole system while it runs.
_SYSTEM = ExitStack()

STATE = Path(__file__).parents[1] / ".local"
_MEMORY = Path("/dev/shm")
# The tests use less than a tenth of it.
_ROOM = 4 * 2**30
# pytest-xdist gives whole groups to one worker process, because the servers below belong to one process.
# The first takes as long as two or three of the others. Much of the time is waiting, so that three workers
# are faster than two, also on two cores.
GROUPS = {
    "tests/acceptance/": "system",
    "tests/faults/": "system",
    "tests/integration/service/test_cache": "servers for the caches",
    "tests/integration/service/": "servers for the services",
    "tests/integration/live_check/": "servers for the streams",
    "tests/integration/relay/": "servers for the streams",
    "tests/integration/slots/": "servers for the streams",
    "tests/integration/stream/": "servers for the streams",
    "tests/integration/test_": "servers for the streams",
    "tests/integration/": "servers",
}


# Tests whose own code takes most of their time, which tracing would double: the clients of the whole system,
# the model, the load under faults, the site, and the validation of manifests. What they cover of the library,
# others cover too.
UNTRACED = (
    "tests/acceptance/",
    "tests/faults/",
    "tests/unit/protocol/",
    "tests/unit/test_docs.py",
    "tests/unit/test_k8s.py",
)
# The doctor runs in the test itself.
TRACED = "tests/acceptance/test_doctor.py"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect the tests in three quarters of the time: what is imported and collected stays until the end."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(UNTRACED) and not item.nodeid.startswith(TRACED):
            item.add_marker(pytest.mark.no_cover)
    # The tests of the whole system come first, so that it can stop after the last of them.
    items.sort(key=lambda item: not _uses_system(item))


def _uses_system(item: pytest.Item | None) -> bool:
    # Other folders have a fixture of this name, too.
    return (
        isinstance(item, pytest.Function)
        and "system" in item.fixturenames
        and GROUPS["tests/acceptance/"] == _group(item.nodeid)
    )


def _group(nodeid: str) -> str:
    return next((group for folder, group in GROUPS.items() if nodeid.startswith(folder)), nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Stop the whole system once it is not needed: it takes a third of a core even if nothing happens."""
    yield
    if _uses_system(item) and not _uses_system(nextitem):
        _SYSTEM.close()


class ByServers(LoadScopeScheduling):  # type: ignore[misc] # untyped
    """Keeps tests that share servers in one process and distributes the others freely."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByServers:
    return ByServers(config, log)


@pytest.fixture(scope="session")
def state_folder() -> Iterator[Path]:
    """A folder that is kept between sessions, so that one-time setup is done only once."""
    with claim_any(STATE / "test") as folder:
        yield folder


@contextmanager
def memory_for(state: Path) -> Iterator[Path | None]:
    """Yield a folder in memory that belongs to a state folder; None if the machine has no room for it.

    Nearly every test copies a database, which is many small files: on a busy disk, that takes ten times as
    long.
    """
    if not _MEMORY.is_dir() or min(disk_usage(_MEMORY).free, virtual_memory().available) < _ROOM:
        yield None
        return
    # Always the same one, so that what a killed run has left there is deleted by the next.
    folder = _MEMORY / f"db-cache-sync-{sha256(str(state).encode()).hexdigest()[:16]}"
    rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o711)
    yield folder
    rmtree(folder)


@pytest.fixture(scope="session")
def postgres(state_folder: Path) -> Iterator[Postgres]:
    """A running PostgreSQL that has only an empty database `cachesync`."""
    with memory_for(state_folder) as memory, Postgres(state_folder, home=memory) as server:
        # Data survives the processes that tests kill without it; it matters only if the machine fails.
        for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
            server.sql(statement, "postgres")
        server.drop_databases()
        yield server


@pytest.fixture(scope="session")
def redis_sa(state_folder: Path) -> Iterator[Redis]:
    """The Redis of the service sa, shared by all tests of a session."""
    with Redis(state_folder, name="redis-sa") as server:
        yield server


@pytest.fixture(scope="session")
def redis_sb(state_folder: Path) -> Iterator[Redis]:
    """The Redis of the service sb, shared by all tests of a session."""
    with Redis(state_folder, name="redis-sb") as server:
        yield server


@pytest.fixture(scope="session")
def kafka(state_folder: Path) -> Iterator[Kafka]:
    """A Kafka that starts without topics, shared by all tests of a session."""
    server = Kafka(state_folder, jars=STATE / "kafka")
    server.erase()
    with server:
        yield server


@pytest.fixture(scope="session")
def links() -> Iterator[Links]:
    """The network links between the parts of the system."""
    with Links() as made:
        yield made


@pytest.fixture(scope="session")
def system(links: Links) -> Iterator[System]:
    """The whole system with Airflow, as `make demo` starts it, but on free ports and linked through proxies.

    Three consumers share the load of each cache. It runs until the last test that uses it.
    """
    with _SYSTEM:
        patch = _SYSTEM.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("CACHESYNC_CONSUMERS_PER_CACHE", "3")
        yield _SYSTEM.enter_context(linked_system(STATE / "system", Console(stderr=True), links))


@pytest.fixture(scope="session")
def promtool() -> str:
    """The program that checks metrics and alert rules; tests are skipped if it cannot be had."""
    STATE.mkdir(exist_ok=True)
    try:
        return require_promtool(STATE)
    except LocalError as error:
        pytest.skip(str(error))
