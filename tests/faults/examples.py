"""The services in examples/ while components are killed: `python -m tests.faults.examples`.

Each client owns a customer, whose amounts only grow, and the notes of its purchases, which are numbered.
So it knows the least that a read of its own may show.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Annotated, Final

import httpx
import psycopg
import typer
from psycopg.rows import dict_row
from rich.console import Console

from local.ports import accepts, free_port
from local.postgres import run_sql
from local.process import Process, run
from local.settings import REPOSITORY
from local.state import claim_any
from tests.example_services import EXAMPLES, command, environment
from tests.faults.history import rest
from tests.faults.history.faults import Faults
from tests.faults.history.record import Clock
from tests.faults.history.schedule import Planned
from tests.faults.links import Links, linked_system
from tests.faults.supervisor import bring_airflow_back

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from local.system import System

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)

# The examples, by the name of the service.
SERVICES: Final = {"shop": "fastapi", "office": "django"}
_CLIENTS: Final = 4
_ATTEMPT_SECONDS: Final = 5.0
_REST_SECONDS: Final = 180.0
# Not a Redis: after its reply is lost, another worker can read what it still holds; see docs/library.md.
_FROZEN: Final = ("postgres", "kafka", "triggerer", *SERVICES)
_KILLED: Final = (*_FROZEN, "redis-shop", "redis-office", "scheduler")


class Example(Process):
    """One of the services, as its users start it."""

    def __init__(self, folder: Path, name: str, variables: Mapping[str, str]) -> None:
        self.port = free_port()
        self._kind = SERVICES[name]
        self._variables = variables
        super().__init__(name, folder, {name: self.port})

    @property
    def url(self) -> str:
        """The base URL of its API."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return command(self._kind, self.port)

    def working_folder(self) -> Path:
        return EXAMPLES / self._kind

    def environment(self) -> dict[str, str]:
        return dict(self._variables)

    def ready(self) -> bool:
        try:
            return accepts(self.port) and httpx.get(f"{self.url}/purchases", timeout=5).is_success
        except httpx.TransportError:
            return False


@dataclass
class Client:
    """A client of one service, which compares what it reads with what was acknowledged."""

    service: Example
    customer: int
    random: Random
    spent: int = 0
    notes: dict[int, int] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    operations: int = 0
    acknowledged: int = 0
    stale: list[str] = field(default_factory=list)

    def work(self, stopping: threading.Event) -> None:
        """Write and read until the run ends; a request that fails may have been executed or not."""
        with httpx.Client(base_url=self.service.url, timeout=_ATTEMPT_SECONDS) as http:
            while not stopping.is_set():
                self.operations += 1
                try:
                    self._write(http)
                    self._read(http)
                except (httpx.TransportError, httpx.HTTPStatusError):
                    time.sleep(0.2)

    def _write(self, http: httpx.Client) -> None:
        known = [key for key in self.notes if key not in self.deleted]
        ways = {"purchase": 3, "note": 6, "delete": 1} if known else {"purchase": 1}
        (way,) = self.random.choices([*ways], [*ways.values()])
        if way == "purchase":
            answer = http.post(
                "/purchases", json={"customer_id": self.customer, "amount": 1, "note": "0"}
            ).raise_for_status()
            self.spent += 1
            self.notes[answer.json()["id"]] = 0
        elif way == "note":
            key = self.random.choice(known)
            number = self.notes[key] + 1
            # Without an acknowledgement, it can be written at any later time.
            del self.notes[key]
            http.patch(f"/purchases/{key}", json={"note": f"{number}"}).raise_for_status()
            self.notes[key] = number
        else:
            key = self.random.choice(known)
            number = self.notes.pop(key)
            http.delete(f"/purchases/{key}").raise_for_status()
            self.deleted.add(key)
            self.notes[key] = number
        self.acknowledged += 1

    def _read(self, http: httpx.Client) -> None:
        if not self.notes:
            return
        key = self.random.choice(list(self.notes)[-20:])
        answer = http.get(f"/purchases/{key}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            if key not in self.deleted:
                self.stale.append(f"{self.service.name}: purchase {key} is missing")
            return
        row = answer.raise_for_status().json()
        if key in self.deleted:
            self.stale.append(f"{self.service.name}: purchase {key} was deleted")
        elif int(row["note"]) < self.notes[key]:
            self.stale.append(f"{self.service.name}: purchase {key}: {row['note']} < {self.notes[key]}")
        spent = float(row["customer"]["spent"])
        if spent < self.spent:
            self.stale.append(f"{self.service.name}: customer {self.customer}: {spent} < {self.spent}")


@app.command()
def main(
    minutes: Annotated[float, typer.Option(envvar="MINUTES", min=0.1)] = 10,
    seed: Annotated[int | None, typer.Option(envvar="SEED", help="Random by default.")] = None,
) -> None:
    """Kill components while clients of both services check that they read their own writes."""
    console = Console()
    seed = secrets.randbelow(10**6) if seed is None else seed
    console.print(f"seed {seed}, {minutes:g} minutes")
    os.environ["CACHESYNC_CACHES"] = ",".join(("sa", "sb", *SERVICES))
    with claim_any(REPOSITORY / ".local" / "faults") as state, Links() as links:
        system = linked_system(state, console, links)
        entities = state / "entities.toml"
        sections = [REPOSITORY / "entities.toml", EXAMPLES / "fastapi" / "entities.toml"]
        entities.write_text("\n".join(file.read_text() for file in sections))
        system.airflow.environment["CACHESYNC_ENTITIES"] = str(entities)
        with system:
            failed = _run(system, links, entities, console, seed, minutes)
    raise typer.Exit(1 if failed else 0)


def _run(  # noqa: PLR0917 - the parts of a run
    system: System, links: Links, entities: Path, console: Console, seed: int, minutes: float
) -> bool:
    services = {
        name: Example(system.folder, name, environment(system.addresses[name], system.redis_urls[name]))
        for name in SERVICES
    }
    _prepare(system, entities, services)
    faults = Faults(system, links, Clock(), seed, others=services)
    clients = [
        Client(services[name], number * 10 + place, Random(f"{seed} {name} {number}"))
        for place, name in enumerate(SERVICES)
        for number in range(1, _CLIENTS + 1)
    ]
    with psycopg.connect(system.dsn, autocommit=True) as connection:
        for client in clients:
            connection.execute("INSERT INTO customer (id, name) VALUES (%s, 'Ann')", [client.customer])
    stopping = threading.Event()
    threads = [threading.Thread(target=client.work, args=(stopping,)) for client in clients]
    try:
        for service in services.values():
            service.start()
        with faults.supervised():
            for thread in threads:
                thread.start()
            _harm(faults, console, seed, minutes)
            stopping.set()
            for thread in threads:
                thread.join()
            bring_airflow_back(system)
            differences = _differences_at_rest(system, services)
    finally:
        stopping.set()
        for service in services.values():
            service.stop()
    stale = [text for client in clients for text in client.stale]
    figures = {
        "operations": sum(client.operations for client in clients),
        "acknowledged": sum(client.acknowledged for client in clients),
        "stale_own_reads": len(stale),
        "stale_at_rest": len(differences),
        "faults": len(faults.done),
        "seed": seed,
        "minutes": f"{minutes:g}",
    }
    console.print(" ".join(f"{name}={figure}" for name, figure in figures.items()), soft_wrap=True)
    for text in (*stale[:10], *differences[:10]):
        console.print(text, style="red", markup=False, highlight=False)
    return bool(stale or differences)


def _prepare(system: System, entities: Path, services: Mapping[str, Example]) -> None:
    # Those of an earlier run.
    run_sql(system.dsn, "DROP TABLE IF EXISTS purchase, customer CASCADE")
    run_sql(system.dsn, (EXAMPLES / "fastapi" / "schema.sql").read_text())
    variables = {
        **os.environ,
        "CACHESYNC_ENTITIES": str(entities),
        "CACHESYNC_DSN": system.dsn,
        "KAFKA_BOOTSTRAP_SERVERS": system.bootstrap_servers,
    }
    for step in ("install", "create-topics"):
        run([sys.executable, "-m", "cachesync", step], cwd=REPOSITORY, environment=variables)
    for name in services:
        run_sql(system.dsn, 'GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO :"name"', name=name)
        run_sql(system.dsn, 'GRANT cachesync_service TO :"name"', name=name)


def _planned(random: Random) -> Iterator[Planned]:
    """Yield faults indefinitely; each kind hits each part once before any is repeated."""
    while True:
        deck = [("kill", part) for part in _KILLED] + [("freeze", part) for part in _FROZEN]
        random.shuffle(deck)
        for kind, part in deck:
            yield Planned(kind, part, 0.0, random.uniform(0.5, 6), random.random())


def _harm(faults: Faults, console: Console, seed: int, minutes: float) -> None:
    random = Random(f"{seed} schedule")
    planned = _planned(random)
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        for fault in faults.episode([next(planned)]):
            console.print(f"{fault.kind:<8}{fault.part:<14}{fault.repaired - fault.begin:6.1f} s")
        time.sleep(random.uniform(2, 6))


def _differences_at_rest(system: System, services: Mapping[str, Example]) -> list[str]:
    """Return what the services read differently from the database after all changes were delivered."""
    deadline = time.monotonic() + _REST_SECONDS
    newest = rest.last_version(system)
    while rest.unpublished(system, newest) and time.monotonic() < deadline:
        time.sleep(0.2)
    while (found := _differences(system, services)) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def _differences(system: System, services: Mapping[str, Example]) -> list[str]:
    with psycopg.connect(system.dsn, row_factory=dict_row) as connection:
        rows = connection.execute(
            "SELECT p.id, p.note, c.spent FROM purchase AS p JOIN customer AS c ON c.id = p.customer_id"
        ).fetchall()
    found = []
    for service in services.values():
        with httpx.Client(base_url=service.url, timeout=30) as http:
            for row in rows:
                read = http.get(f"/purchases/{row['id']}").json()
                if read.get("note") != row["note"] or float(read["customer"]["spent"]) != row["spent"]:
                    found.append(f"{service.name} at rest: {read}, but {row}")
    return found


if __name__ == "__main__":
    app()
