"""Injects each kind of fault into the system, and repairs it."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from secrets import token_hex
from types import MappingProxyType
from typing import TYPE_CHECKING

import redis as redis_client
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from cachesync.dead_letters.sender import DeadLetterSender
from cachesync.entity import load_entities
from cachesync.errors import StreamError
from cachesync.kafka.event import headers_of
from cachesync.slots.batch import Applier
from cachesync.stream.stream import Stream
from local.command import ENTITIES
from local.errors import CommandError, LocalError
from local.postgres import run_sql
from tests.faults.history.groups import delete_group
from tests.faults.history.record import Fault
from tests.faults.history.rest import reconcile, run_cachesync, wait_noticed
from tests.faults.supervisor import metadata
from tests.integration.refusals import DELETES, READS_ONLY, refusing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from confluent_kafka import KafkaError, Message

    from local.process import Process
    from local.system import System
    from tests.faults.history.record import Clock
    from tests.faults.history.schedule import Planned
    from tests.faults.links import Links
    from tests.faults.proxy import Proxy

_POISON: tuple[dict[str, bytes], ...] = (
    {},
    {"ce_specversion": b"1.0", "ce_type": b"cachesync.nonsense"},
    {"ce_specversion": b"1.0", "ce_type": b"cachesync.upsert", "ce_rowversion": b"-1"},
)
# Deletes their task instances as well.
_DELETE_TRIGGERS = (
    "DELETE FROM trigger USING task_instance AS task "
    "WHERE task.trigger_id = trigger.id AND starts_with(task.task_id, :'tasks')"
)
_MAX_POISON = 6
_MAX_REPLAYED = 300
_MAX_DELAY_SECONDS = 0.4
# Shorter than a service's database timeout and its lease, so that the late response is still used.
_LATEST_ANSWER_SECONDS = 1.8
_KAFKA_SECONDS = 10.0

Dump = dict[bytes, tuple[bytes, int]]


class Faults:
    """Injects the planned faults, and restarts components that exit, as a supervisor would.

    Args:
        system: the running system.
        links: the proxies between its components.
        clock: tells when each fault began.
        seed: determines the details of the faults.
        others: further processes to restart and to harm, by name.

    Attributes:
        done: the faults so far, including those in progress.
        poison: the keys of the undecodable messages that the broker has acknowledged.
    """

    def __init__(
        self,
        system: System,
        links: Links,
        clock: Clock,
        seed: int,
        others: Mapping[str, Process] = MappingProxyType({}),
    ) -> None:
        self._system = system
        self._links = links
        self._clock = clock
        self._random = Random(f"{seed} faults")
        self._stopping = threading.Event()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._supervised: dict[str, Process] = {
            **system.services,
            **others,
            **{part.name.removeprefix("airflow-"): part for part in system.airflow.components},
        }
        assert system.postgres is not None
        assert system.kafka is not None
        servers = (system.postgres, system.kafka, *system.redis.values())
        self._processes: dict[str, Process] = self._supervised | {server.name: server for server in servers}
        self.done: list[Fault] = []
        self.poison: set[bytes] = set()

    @contextmanager
    def supervised(self) -> Iterator[None]:
        """Restart components that exit on their own, as some of Airflow's do while the database is down."""
        threads = [
            threading.Thread(target=self._supervise, args=(name,), daemon=True) for name in self._supervised
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def _supervise(self, name: str) -> None:
        process = self._supervised[name]
        while not self._stopping.wait(0.5):
            with self._locks[name]:
                if not process.running:
                    self._start(process)

    def _start(self, process: Process) -> None:
        while not self._stopping.is_set():
            try:
                process.start()
            except LocalError:
                # A component that it needs is unavailable too.
                time.sleep(0.5)
            else:
                return

    def episode(self, planned: list[Planned]) -> list[Fault]:
        """Inject faults and repair them; return when all are repaired."""
        faults = [Fault(kind=one.kind, part=one.part, begin=self._clock()) for one in planned]
        threads = [
            threading.Thread(target=self._do, args=(one, fault))
            for one, fault in zip(planned, faults, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return faults

    def _do(self, planned: Planned, fault: Fault) -> None:
        time.sleep(planned.offset)
        with self._locks[planned.part]:
            fault.begin = self._clock()
            self.done.append(fault)
            if planned.kind in {"kill", "freeze"}:
                self._process(planned, self._processes[planned.part])
            elif planned.kind == "kill worker":
                self._kill_worker(self._processes[planned.part])
            elif planned.part.startswith("redis-"):
                self._slots(planned, fault)
            elif planned.part.startswith("cachesync."):
                self._messages(planned)
            elif planned.kind == "join":
                self._join(planned)
            elif planned.kind == "delete group":
                delete_group(self._system.bootstrap_servers, planned.part)
            elif planned.kind == "delete trigger":
                self._delete_triggers(planned)
            elif planned.kind == "enable triggers":
                self._enable_triggers(planned.part)
            else:
                user, _, part = planned.part.partition(" to ")
                self._way(planned, self._links.proxies[user, part])
            fault.repaired = min(fault.repaired, self._clock())

    def _process(self, planned: Planned, process: Process) -> None:
        if planned.kind == "kill":
            process.kill()
            time.sleep(planned.seconds)
            self._start(process)
        else:
            process.freeze()
            time.sleep(planned.seconds)
            process.thaw()

    @staticmethod
    def _kill_worker(process: Process) -> None:
        for worker in process.tree()[1:2]:
            worker.kill()
        while process.running and not process.ready():
            time.sleep(0.1)

    def _way(self, planned: Planned, proxy: Proxy) -> None:
        if planned.kind == "late answers":
            until = time.monotonic() + planned.seconds
            while time.monotonic() < until:
                proxy.hold_answers()
                time.sleep(self._random.uniform(0.2, _LATEST_ANSWER_SECONDS))
                proxy.mend()
                time.sleep(0.3)
            return
        if planned.kind == "cut":
            proxy.cut()
        elif planned.kind == "hold":
            proxy.freeze()
        else:
            proxy.delay = _MAX_DELAY_SECONDS * planned.strength**2
        time.sleep(planned.seconds)
        proxy.mend()

    def _slots(self, planned: Planned, fault: Fault) -> None:
        service = planned.part.removeprefix("redis-")
        url = self._system.redis_urls[service]
        if planned.kind == "restore":
            dump = take_dump(url)
            time.sleep(planned.seconds)
            fault.begin = self._clock()
            fault.restored = service
            restore_dump(url, dump)
            # Writes until now can be undone by the restore; writes from now on cannot.
            fault.repaired = self._clock()
            reconcile(self._system, service)
            fault.reconciled = self._clock()
            return
        with redis_client.Redis.from_url(url) as client:
            if planned.kind == "flush":
                client.flushall()
                return
            if planned.kind == "refuse":
                ways = (*DELETES, *READS_ONLY)
                with refusing(client, ways[int(planned.strength * len(ways))]):
                    time.sleep(planned.seconds)
                return
            until = time.monotonic() + planned.seconds
            while time.monotonic() < until:
                client.delete(*[client.randomkey() or b"-" for _ in range(10)])
                time.sleep(0.02)

    def _join(self, planned: Planned) -> None:
        """Let one more consumer join a group, as another triggerer's would, and leave it again."""
        group = planned.part
        service = group.removeprefix("cachesync-")
        environment = self._system.airflow.environment
        settings = json.loads(environment[f"AIRFLOW_CONN_KAFKA_{service.upper()}"])["extra"]
        broker = {"bootstrap.servers": settings["bootstrap.servers"], "log_level": 0}
        entities = load_entities(Path(ENTITIES))
        url = environment[f"AIRFLOW_CONN_REDIS_{service.upper()}"]
        with redis_client.Redis.from_url(url, socket_timeout=2) as client:
            stream = Stream(
                lambda: Consumer(settings | broker),
                Applier(client, service, entities),
                DeadLetterSender(lambda: Producer(broker), service, group),
                entities,
                service,
                settings=settings,
            )
            leave = threading.Timer(planned.seconds, stream.stop)
            leave.start()
            # The stream ends early if Kafka has a fault too, or if too many messages are undecodable.
            with suppress(StreamError):
                stream.run()
            leave.join()

    def _delete_triggers(self, planned: Planned) -> None:
        """Delete the deferred tasks of a cache or of the relay, as `airflow db clean` does with old ones."""
        # PostgreSQL can have a fault at the same time.
        with suppress(CommandError):
            run_sql(metadata(self._system), _DELETE_TRIGGERS, tasks=planned.part)

    def _enable_triggers(self, table: str) -> None:
        """Make the triggers of a table ordinary ones, and install them again once every service has noticed.

        Ordinary triggers still fire for every client, so nothing may be lost.
        """
        try:
            run_sql(self._system.dsn, f"ALTER TABLE {table} ENABLE TRIGGER ALL")
        except CommandError:
            # PostgreSQL has a fault at the same time.
            return
        wait_noticed(self._system, table, noticed=True)
        run_cachesync(self._system, "install", "--entities", ENTITIES)
        wait_noticed(self._system, table, noticed=False)

    def _messages(self, planned: Planned) -> None:
        producer = Producer({"bootstrap.servers": self._system.bootstrap_servers, "log_level": 0})
        if planned.kind == "poison":
            for _ in range(1 + round((_MAX_POISON - 1) * planned.strength)):
                headers = self._random.choice(_POISON)
                producer.produce(
                    planned.part,
                    key=f"poison-{token_hex(8)}".encode(),
                    value=b"\x00\xff",
                    headers=list(headers.items()),
                    on_delivery=self._poisoned,
                )
        else:
            self._replay(planned, producer)
        producer.flush(_KAFKA_SECONDS)

    def _poisoned(self, error: KafkaError | None, message: Message) -> None:
        key = message.key()
        if error is None and key is not None:
            self.poison.add(key)

    def _replay(self, planned: Planned, producer: Producer) -> None:
        """Send old messages again, unchanged."""
        consumer = Consumer(
            {"bootstrap.servers": self._system.bootstrap_servers, "group.id": "history", "log_level": 0}
        )
        try:
            partitions = (
                consumer.list_topics(planned.part, timeout=_KAFKA_SECONDS).topics[planned.part].partitions
            )
            starts = []
            for partition in partitions:
                place = TopicPartition(planned.part, partition)
                low, high = consumer.get_watermark_offsets(place, timeout=_KAFKA_SECONDS)
                place.offset = low + int((high - low) * planned.strength)
                starts.append(place)
            consumer.assign(starts)
            for message in consumer.consume(_MAX_REPLAYED, _KAFKA_SECONDS / 5):
                if message.error() is None:
                    producer.produce(
                        planned.part, key=message.key(), value=message.value(), headers=headers_of(message)
                    )
        except KafkaException:
            # Kafka has a fault at the same time.
            pass
        finally:
            consumer.close()


def take_dump(url: str) -> Dump:
    """Return the contents of a cache, with the remaining lifetime of each slot in milliseconds."""
    dump: Dump = {}
    with redis_client.Redis.from_url(url) as client:
        for name in client.scan_iter(count=1000, _type="string"):
            slot, ttl = client.get(name), client.pttl(name)
            if isinstance(slot, bytes) and isinstance(ttl, int) and ttl > 0:
                dump[name] = (slot, ttl)
    return dump


def restore_dump(url: str, dump: Dump) -> None:
    """Replace the contents of a cache with those of a dump."""
    with redis_client.Redis.from_url(url) as client:
        client.flushall()
        for name, (slot, ttl) in dump.items():
            client.set(name, slot, px=ttl)
