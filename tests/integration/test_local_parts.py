"""The components of the local system: a killed one keeps its data, and no process is left behind."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from rich.console import Console

import local.postgres as postgres_module
from cachesync.backoff import Backoff
from local import ports
from local.airflow import Airflow
from local.errors import CommandError, PortTakenError, ProcessExitedError, StartTimeoutError, StateInUseError
from local.kafka import Kafka
from local.ports import accepts, free_port
from local.postgres import Postgres, run_sql
from local.process import Process
from local.redis import Redis
from local.state import claim, claim_any
from local.supervisor import Supervisor
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]


class Python(Process):
    """A process that runs a line of Python."""

    start_seconds = 1.0

    def __init__(self, folder: Path, line: str) -> None:
        self.line = line
        super().__init__("python", folder, {})

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.line]

    def ready(self) -> bool:
        return "ready" in self.log.read_text()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def private(folder: Path) -> bool:
    """Return whether other users can read no file or directory in the folder."""
    return not [path for path in folder.rglob("*") if path.lstat().st_mode & 0o044]


def test_sessions_share_one_server_of_each(postgres: Postgres, redis_sa: Redis, redis_sb: Redis) -> None:
    assert postgres.sql("SELECT current_database()") == "cachesync"
    assert redis_sa.url != redis_sb.url


def test_postgres_keeps_its_data_when_killed(state_folder: Path) -> None:
    with Postgres(state_folder / "own") as server:
        server.drop_databases()
        server.sql("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)")
        server.kill()
        assert not accepts(server.port)
        server.start()
        assert server.sql("TABLE kept") == "1"
        assert server.sql("SHOW fsync") == "on"


def test_command_lines_of_database_clients_contain_no_secret(postgres: Postgres) -> None:
    shown = postgres_module.run_sql(postgres.dsn, "\\! ps -ww -o args= -p $PPID", password="s3cret")
    assert "psql" in shown
    assert postgres.password not in shown
    assert "s3cret" not in shown
    command, environment = postgres_module.client("pg_dump", f"{postgres.dsn}?password=other&sslmode=disable")
    assert "other" not in " ".join(command)
    assert "sslmode=disable" in " ".join(command)
    assert environment["PGPASSWORD"] == "other"


@pytest.mark.parametrize("value", ["", "it's", 'a "b"', "\\n", "a\nb\r\n", ":'name'", "%s $1", "é\t", " a "])
def test_statement_gets_the_exact_value_of_a_variable(postgres: Postgres, value: str) -> None:
    encoded = postgres_module.run_sql(
        postgres.dsn, "SELECT encode(convert_to(:'value', 'UTF8'), 'hex')", name="x", value=value
    )
    assert bytes.fromhex(encoded).decode() == value


def test_postgres_creates_a_database_only_once(postgres: Postgres) -> None:
    dsn = postgres.create_database('od"d')
    assert postgres.create_database('od"d') == dsn


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs PostgreSQL as another user")
def test_postgres_data_is_elsewhere_if_its_user_cannot_access_the_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with Postgres(closed / "state") as server:
        server.sql("CREATE TABLE kept ()")
    # The next start finds the same data.
    with Postgres(closed / "state") as server:
        assert not Path(server.sql("SHOW data_directory")).is_relative_to(tmp_path)
        assert server.sql("SELECT count(*) FROM kept") == "0"


def test_concurrent_runs_make_one_copy_of_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "_OPEN_FOLDER", tmp_path)
    with ThreadPoolExecutor() as pool:
        copies = {copy.result() for copy in [pool.submit(postgres_module.open_programs) for _ in range(4)]}
    (programs,) = copies
    assert subprocess.run([programs / "postgres", "--version"], check=False).returncode == 0


def test_kafka_keeps_its_data_when_killed(state_folder: Path) -> None:
    server = Kafka(state_folder / "own", jars=REPOSITORY / ".local" / "kafka")
    server.erase()
    with server:
        admin = AdminClient({"bootstrap.servers": server.bootstrap_servers})
        admin.create_topics([NewTopic("kept", 2)])["kept"].result()
        producer = Producer({"bootstrap.servers": server.bootstrap_servers, "log_level": 0})
        producer.produce("kept", key=b"1", value=b"1")
        assert producer.flush(10) == 0
        server.kill()
        server.start()
        topics = AdminClient({"bootstrap.servers": server.bootstrap_servers}).list_topics(timeout=5).topics
        assert len(topics["kept"].partitions) == 2
        consumer = Consumer(
            {"bootstrap.servers": server.bootstrap_servers, "group.id": "g", "auto.offset.reset": "earliest"},
        )
        consumer.subscribe(["kept"])
        message = consumer.poll(20)
        assert message is not None
        assert message.value() == b"1"
        consumer.close()


def test_data_and_logs_can_be_read_by_their_owner_only(state_folder: Path) -> None:
    folder = state_folder / "own"
    server = Kafka(folder, jars=REPOSITORY / ".local" / "kafka")
    # As an earlier version created them.
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "kafka-data").mkdir(parents=True)
    server.log.touch()
    with server, Postgres(folder) as database, Redis(folder):
        airflow = Airflow(folder / "airflow", admin_dsn=database.dsn, environment={})
        assert airflow.folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "kafka-data").stat().st_mode & 0o777 == 0o700
        assert list(folder.rglob("*.log"))
        assert private(folder)


def test_frozen_process_hangs_and_continues_when_thawed(tmp_path: Path) -> None:
    with (
        Redis(tmp_path) as server,
        redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None) as client,
    ):
        client.set("a", "1")
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.get("a")
        server.thaw()
        assert client.get("a") == b"1"


def test_stop_leaves_no_process_behind_even_if_frozen(state_folder: Path) -> None:
    server = Postgres(state_folder / "own").start()
    members = server.tree()
    assert len(members) > 1
    server.freeze()
    server.stop()
    assert not [member for member in members if lives(member.pid)]
    assert not server.running


def test_stop_kills_processes_that_ignore_the_signal(tmp_path: Path) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = f"import signal, os, time; {ignore}; os.fork() and print('ready', flush=True); time.sleep(60)"
    process = Python(tmp_path, child)
    process.stop_seconds = 0.2
    with process:
        members = process.tree()
        assert len(members) == 2
    assert not [member for member in members if lives(member.pid)]


def test_process_that_another_thread_is_spawning_can_be_killed(tmp_path: Path) -> None:
    spawning, looked = threading.Event(), threading.Event()

    class Slow(Python):
        def environment(self) -> dict[str, str]:
            spawning.set()
            # The kill either looks for the processes before there are any, or waits for them.
            looked.wait(1)
            return super().environment()

        def tree(self) -> list[psutil.Process]:
            found = super().tree()
            looked.set()
            return found

    slow = Slow(tmp_path, "print('ready', flush=True); import time; time.sleep(60)")
    slow.start_seconds = 30
    with ThreadPoolExecutor() as pool:
        start = pool.submit(slow.start)
        assert spawning.wait(30)
        looked.clear()
        pool.submit(slow.kill).result(30)
        start.exception(30)
    assert not slow.running


def test_error_about_a_process_that_exits_early_includes_its_log(tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedError, match=r"python exited with status 3 before(.|\n)*no such thing"):
        Python(tmp_path, "print('no such thing'); exit(3)").start()


def test_process_that_is_not_ready_in_time_is_killed_and_its_log_shown(tmp_path: Path) -> None:
    process = Python(tmp_path, "import time; print('still busy', flush=True); time.sleep(60)")
    with pytest.raises(StartTimeoutError, match=r"python was not ready after 1 s(.|\n)*still busy"):
        process.start()
    assert not process.running


class Supervised(Python):
    """A process that counts its starts, runs a line, is ready, and exits when the file `end` appears."""

    def __init__(self, folder: Path, line: str = "") -> None:
        super().__init__(folder, f"{STARTED}{line}{WAITING}")
        self.up = folder / "up"
        self.end = folder / "end"

    def prepare(self) -> None:
        self.up.unlink(missing_ok=True)

    def ready(self) -> bool:
        return self.up.exists()

    def count(self) -> int:
        return len((self.folder / "starts").read_text())


STARTED = """
import os, time
with open("starts", "a") as file:
    file.write("x")
"""
WAITING = """
open("up", "x").close()
while not os.path.exists("end"):
    time.sleep(0.01)
os.unlink("end")
exit(3)
"""


def test_process_that_has_exited_is_started_again_and_reported(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), record=True)
    with Supervised(tmp_path) as process, Supervisor([process], console):
        process.end.touch()
        wait_until(lambda: process.count() == 2 and process.running, "the process has been started again")
    text = console.export_text()
    assert f"python exited with status 3; see {process.log}" in text
    assert "python was restarted in" in text
    assert not process.running


def test_process_that_keeps_exiting_is_restarted_less_and_less_often(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), record=True)
    backoff = Backoff(first=0.1, longest=0.2, jitter=0)
    with (
        Supervised(tmp_path, "os.path.exists('fail') and exit('no such table')") as process,
        Supervisor([process], console, backoff),
    ):
        (tmp_path / "fail").touch()
        process.end.touch()
        wait_until(lambda: process.count() >= 4, "the process has been started several times")
        (tmp_path / "fail").unlink()
        wait_until(lambda: process.running, "the process runs again")
    text = console.export_text()
    assert "python was not restarted: python exited with status 1 before it was ready" in text
    assert "no such table" in text
    assert "python was restarted once already; next restart in 0.1 s" in text
    assert "python was restarted 2 times already; next restart in 0.2 s" in text


class Unwritable(Supervised):
    """A process that cannot write its files for a while."""

    def prepare(self) -> None:
        if (self.folder / "full").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        super().prepare()


def test_process_that_cannot_be_started_for_now_is_started_later(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), record=True)
    backoff = Backoff(first=0.1, longest=0.2, jitter=0)
    full = tmp_path / "full"
    with Unwritable(tmp_path) as process, Supervisor([process], console, backoff):
        full.touch()
        process.end.touch()
        wait_until(lambda: "restarted 2 times" in console.export_text(clear=False), "restarts have failed")
        full.unlink()
        wait_until(lambda: process.running, "the process runs again")
    assert "python was not restarted: [Errno 28] No space left on device" in console.export_text()


def test_client_does_not_wait_for_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "_CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        dsn = f"postgresql://postgres@127.0.0.1:{hanging.getsockname()[1]}/postgres"
        with pytest.raises(CommandError, match="timeout expired"):
            run_sql(dsn, "SELECT 1")


def test_process_that_was_stopped_or_killed_is_not_started_again(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), record=True)
    parts = [Supervised(tmp_path / name) for name in ("stopped", "killed", "exited")]
    stopped, killed, exited = parts
    with stopped, killed, exited:
        with Supervisor(parts, console):
            stopped.stop()
            killed.kill()
            exited.end.touch()
            wait_until(lambda: exited.count() == 2, "the other process has been started again")
        assert not stopped.running
        assert not killed.running
    assert str(stopped.log) not in console.export_text()


def test_stop_does_not_wait_for_a_restart(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), record=True)
    process = Supervised(tmp_path, "os.path.exists('hang') and time.sleep(600)")
    process.start_seconds = 300
    with process:
        with Supervisor([process], console):
            (tmp_path / "hang").touch()
            process.end.touch()
            wait_until(lambda: process.count() == 2, "the restart has begun")
            began = time.monotonic()
        assert time.monotonic() - began < 60
        assert not process.running


def test_port_in_use_is_named_in_the_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            PortTakenError, match=rf"port {port} \(redis-sa\) is already in use; set LOCAL_REDIS_SA_PORT"
        ):
            Redis(tmp_path, name="redis-sa", port=port).start()


class OvertakenPostgres(Postgres):
    """A server whose port another server takes while its data directory is being created."""

    other: Postgres

    def prepare(self) -> None:
        super().prepare()
        self.other.start()


def test_server_is_not_ready_if_another_one_responds_on_its_port(state_folder: Path, tmp_path: Path) -> None:
    server = OvertakenPostgres(tmp_path)
    server.other = Postgres(state_folder / "own", port=server.port)
    try:
        # Either can be noticed first: that its port is in use, or that it has exited.
        either = (PortTakenError, ProcessExitedError)
        with pytest.raises(
            either, match=f"port {server.port}.*already in use|could not create any TCP/IP sockets"
        ):
            server.start()
        assert not server.running
        assert server.other.running
    finally:
        server.kill()
        server.other.stop()


FREE_PORTS = """
from local import ports
ports._FIRST, ports._LAST = 31_900, 32_000
print(*(ports.free_port() for _ in range(40)))
"""


def test_free_ports_are_unique_across_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FIRST", 31_900)
    ours = {free_port() for _ in range(40)}
    command = [sys.executable, "-c", FREE_PORTS]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    theirs = {int(port) for port in result.stdout.split()}
    assert len(ours) == len(theirs) == 40
    assert not ours & theirs


PARENT = """
import sys, time
from pathlib import Path
from local.redis import Redis
server = Redis(Path(sys.argv[1]), port=int(sys.argv[2])).start()
print(server.pid, flush=True)
time.sleep(60)
"""


def start_parent(folder: Path, port: int) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-c", PARENT, str(folder), str(port)]
    parent = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def end_parent(parent: subprocess.Popen[str]) -> None:
    parent.kill()
    parent.communicate()


def test_children_of_a_killed_parent_are_terminated(tmp_path: Path) -> None:
    parent, child = start_parent(tmp_path, free_port())
    assert lives(child)
    end_parent(parent)
    wait_until(lambda: not lives(child), "the child has ended", 10)


def test_start_kills_a_process_left_behind_by_a_killed_run(tmp_path: Path) -> None:
    port = free_port()
    parent, child = start_parent(tmp_path, port)
    guard = next(process for process in psutil.Process(parent.pid).children() if process.pid != child)
    guard.send_signal(signal.SIGKILL)
    end_parent(parent)
    assert lives(child)
    with Redis(tmp_path, port=port):
        assert not lives(child)


def test_state_folder_is_used_by_one_run_at_a_time(tmp_path: Path) -> None:
    with claim_any(tmp_path) as first, claim_any(tmp_path) as second:
        assert first != second
        with pytest.raises(StateInUseError, match="LOCAL_STATE"), claim(first):
            pass
    with claim_any(tmp_path) as again:
        assert again == first
