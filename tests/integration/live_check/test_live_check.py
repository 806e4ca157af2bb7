"""The live check, on a system whose parts are taken away one after the other."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from prometheus_client import REGISTRY
from psycopg.rows import dict_row

from cachesync.background import BackgroundSettings
from cachesync.live_check.cache import REDIS_SECONDS
from cachesync.live_check.live_check import LiveCheck
from cachesync.relay.relay import Relay
from cachesync.slots.clients import blocking_client
from cachesync.slots.layout import slot_name
from cachesync.stream.stream import open_stream
from cachesync.value import encode_value
from local.postgres import address
from tests.integration.conftest import copied_database
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachesync.entity import Entity
    from cachesync.work import Work
    from local.postgres import Postgres
    from local.redis import Redis
    from tests.integration.redis_cluster import RedisCluster

CANARY = "cachesync_canary"


class Part:
    """Work in a thread, which can be stopped and started again."""

    def __init__(self, opened: Callable[[], Work]) -> None:
        self._opened = opened
        self.start()

    def start(self) -> None:
        self._work = self._opened()
        self._thread = threading.Thread(target=self._work.run)
        self._thread.start()

    def stop(self) -> None:
        self._work.stop()
        self._thread.join()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        yield
        self.start()


class Parts:
    """A system: its database, its Redis servers, a relay, two streams and the live check."""

    def __init__(
        self, dsn: str, kafka: str, urls: dict[str, str], entities: dict[str, Entity], stack: ExitStack
    ) -> None:
        self.kafka = kafka
        self.connection = stack.enter_context(psycopg.connect(dsn, autocommit=True, row_factory=dict_row))
        worker = address(dsn, database=dsn.rpartition("/")[2], user="background-worker", password="password")
        self.clients = {name: stack.enter_context(blocking_client(url, 5)) for name, url in urls.items()}
        settings = BackgroundSettings()
        groups = {name: f"live-check-{name}-{secrets.token_hex(4)}" for name in urls}
        self.consumers = {name: self._consumer(group) for name, group in groups.items()}
        self.streams = {
            name: Part(
                partial(
                    open_stream,
                    name,
                    entities,
                    stack.enter_context(blocking_client(urls[name], 1)),
                    self.consumers[name],
                    settings.retry_policy,
                    connect=partial(Consumer, self.consumers[name]),
                    connect_producer=partial(Producer, {"bootstrap.servers": kafka}),
                )
            )
            for name in urls
        }
        self.relay = Part(partial(Relay, worker, {"bootstrap.servers": kafka}, entities, settings.retention))
        self._urls, self._worker, self._entities = urls, worker, entities
        self.check = Part(self.live_check())
        for part in (*self.streams.values(), self.relay, self.check):
            stack.callback(part.stop)

    def live_check(self, **others: str) -> Callable[[], LiveCheck]:
        """Return what opens a live check of these caches, and of others whose URLs are given."""
        openers = {
            name: partial(blocking_client, url, REDIS_SECONDS) for name, url in (self._urls | others).items()
        }
        return partial(LiveCheck, self._worker, openers, self._entities)

    def _consumer(self, group: str) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.kafka,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 10,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 500,
        }

    def sql(self, query: str) -> list[dict[str, Any]]:
        cursor = self.connection.execute(query)
        return [] if cursor.description is None else cursor.fetchall()

    def caches(self) -> dict[str, dict[str, Any]]:
        """Return the state of each cache, with the age of the oldest change that it does not have."""
        rows = self.sql(
            "SELECT *, coalesce(extract(epoch FROM checked_at - oldest_unseen_at), 0)::float AS age,"
            " extract(epoch FROM clock_timestamp() - checked_at)::float AS since FROM cachesync.cache_state"
        )
        return {row["service"]: row for row in rows}

    def wait_for_caches(self, condition: Callable[[dict[str, Any], dict[str, Any]], bool], what: str) -> None:
        """Wait until something is true of the states of both caches."""

        def reached() -> bool:
            states = self.caches()
            return states.keys() >= {"sa", "sb"} and condition(states["sa"], states["sb"])

        wait_until(reached, what)

    def wait_until_right(self) -> None:
        self.wait_for_caches(
            lambda sa, sb: all(
                (one["redis"], one["age"]) == ("ok", 0) and one["since"] < 2 for one in (sa, sb)
            ),
            "both caches have all changes",
        )


@pytest.fixture(scope="module")
def parts(  # noqa: PLR0917 - fixtures
    postgres: Postgres,
    administrator: psycopg.Connection,
    redis_sa: Redis,
    redis_sb: Redis,
    topics: str,
    entities: dict[str, Entity],
    sample_template: str,
) -> Iterator[Parts]:
    with copied_database(postgres, administrator, sample_template) as dsn, ExitStack() as stack:
        yield Parts(dsn, topics, {"sa": redis_sa.url, "sb": redis_sb.url}, entities, stack)


@pytest.fixture
def system(parts: Parts) -> Parts:
    """The system, after every cache has all changes."""
    parts.sql("DELETE FROM cachesync.violation")
    parts.wait_until_right()
    return parts


def exported(name: str, service: str) -> float | None:
    return REGISTRY.get_sample_value(f"cachesync_live_check_{name}", {"service": service})


def behind(state: dict[str, Any]) -> bool:
    return (state["redis"], state["oldest_unseen_entity"]) == ("ok", CANARY) and state["age"] > 1


def test_stopped_relay_is_seen_in_every_cache(system: Parts) -> None:
    with system.relay.stopped():
        system.wait_for_caches(lambda sa, sb: behind(sa) and behind(sb), "both caches are behind")
    system.wait_until_right()


def test_partition_that_nobody_applies_is_seen_and_each_slot_is_a_violation_until_it_is_right(
    system: Parts,
) -> None:
    violations = "SELECT * FROM cachesync.violation"
    with closing(Consumer(system.consumers["sb"])) as idle:
        idle.subscribe([f"cachesync.{CANARY}"])
        # It must poll to stay in the group.
        wait_until(
            lambda: idle.poll(0.01) is None and bool(system.sql(violations)), "a violation is recorded"
        )
        states = system.caches()
        assert behind(states["sb"])
        assert not behind(states["sa"])
    system.wait_until_right()
    wait_until(lambda: all(one["seen_at"] for one in system.sql(violations)), "all violations have ended")
    for one in system.sql(violations):
        assert (one["service"], one["entity"], one["kind"]) == ("sb", CANARY, "behind")
        assert one["found"]["version"] < one["version"]
        assert one["committed_at"] < one["noticed_at"] < one["seen_at"]


def test_redis_that_refuses_writes_is_seen(system: Parts) -> None:
    client = system.clients["sa"]
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        system.wait_for_caches(
            lambda sa, sb: (sa["redis"], sb["redis"]) == ("refuses writes", "ok"), "sa refuses writes"
        )
        assert "maxmemory" in system.caches()["sa"]["problem"]
    finally:
        client.config_set("maxmemory", "256mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
    system.wait_until_right()


def test_redis_that_does_not_respond_is_seen_and_delays_no_other(system: Parts, redis_sa: Redis) -> None:
    os.kill(redis_sa.pid, signal.SIGSTOP)
    try:
        system.wait_for_caches(
            lambda sa, sb: sa["redis"] == "unavailable" and sa["age"] > 2 and sb["age"] == 0,
            "only sa is unavailable",
        )
    finally:
        os.kill(redis_sa.pid, signal.SIGCONT)
    system.wait_until_right()


def test_what_the_change_log_cannot_tell_is_found(system: Parts) -> None:
    """Triggers that do not fire, and slots that others have written."""
    names = {str(key): slot_name("sb", "student", str(key)) for key in range(900001, 900005)}
    client = system.clients["sb"]
    for name in names.values():
        client.set(name, encode_value(1, b"01234567", b"{}"))
    system.sql(
        "INSERT INTO student (id, name, age) SELECT 900000 + n, 'Ann', 20 FROM generate_series(1, 4) AS n"
    )
    rows = system.sql(
        "SELECT v.key::text, v.version, v.payload, e.fingerprint FROM cachesync.student AS v,"
        " cachesync.entity AS e WHERE e.name = 'student' AND v.key > 900000 ORDER BY v.key"
    )
    slots = {
        row["key"]: encode_value(row["version"], row["fingerprint"].encode(), row["payload"].encode())
        for row in rows
    }
    forged = {
        "900001": (slots["900001"].replace(b"Ann", b"Bob"), "stale"),
        "900002": (b"A", "false absent"),
        "900003": (encode_value(rows[2]["version"] - 1, rows[2]["fingerprint"].encode(), b"{}"), "behind"),
        # For a service, a value of another schema is a miss.
        "900004": (encode_value(rows[3]["version"] - 1, b"01234567", b"{}"), None),
    }
    wait_until(lambda: client.mget(names.values()) == [*slots.values()], "the inserts are applied")
    for key, (content, _) in forged.items():
        client.set(names[key], content)
    (trigger,) = system.sql(
        "SELECT pg_get_triggerdef(oid) AS definition FROM pg_trigger"
        " WHERE tgname = 'cachesync_log_update' AND tgrelid = 'course'::regclass"
    )
    system.sql("ALTER TABLE student DISABLE TRIGGER cachesync_log_insert")
    system.sql("DROP TRIGGER cachesync_log_update ON course")
    violations = "SELECT key, kind, service, seen_at FROM cachesync.violation WHERE entity = 'student'"
    expected = {key: kind for key, (_, kind) in forged.items() if kind is not None}
    wait_until(
        lambda: {row["key"]: row["kind"] for row in system.sql(violations)} == expected, "all are violations"
    )
    problems = "SELECT entity, problem FROM cachesync.capture_state WHERE problem IS NOT NULL ORDER BY entity"
    assert [(row["entity"], row["problem"]) for row in system.sql(problems)] == [
        ("course", "trigger cachesync_log_update is missing"),
        ("student", "trigger cachesync_log_insert is disabled"),
    ]
    client.delete(*names.values())
    system.sql("ALTER TABLE student ENABLE ALWAYS TRIGGER cachesync_log_insert")
    system.sql(trigger["definition"])
    system.sql("ALTER TABLE course ENABLE ALWAYS TRIGGER cachesync_log_update")
    wait_until(lambda: all(row["seen_at"] for row in system.sql(violations)), "all violations have ended")
    wait_until(lambda: not system.sql(problems), "the triggers fire")


def test_waiting_live_check_takes_over_and_sees_a_cluster_that_nobody_keeps_in_sync(
    system: Parts, redis_cluster: RedisCluster
) -> None:
    second = Part(system.live_check(sc=redis_cluster.url))
    try:
        with system.streams["sb"].stopped():
            system.wait_for_caches(lambda _, sb: behind(sb), "sb is behind")
            assert system.caches().keys() == {"sa", "sb"}
            # The one that waits has seen nothing, and says nothing.
            wait_until(lambda: (exported("oldest_unseen_age_seconds", "sb") or 0) > 1, "its age is exported")
            assert exported("redis_usable", "sc") is None
            first = system.caches()["sb"]
            with system.check.stopped():
                wait_until(lambda: behind(system.caches().get("sc", first | {"age": 0})), "sc is behind")
                again = system.caches()["sb"]
                assert again["oldest_unseen_version"] == first["oldest_unseen_version"]
                assert again["age"] > first["age"]
                second.stop()
    finally:
        second.stop()
    system.wait_until_right()


def test_live_check_continues_after_its_session_was_ended(system: Parts) -> None:
    session = (
        "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '%live-check'"
    )
    (before,) = system.sql(f"SELECT pid, pg_terminate_backend(pid) {session}")
    wait_until(
        lambda: bool(system.sql(f"SELECT pid {session} AND pid <> {before['pid']}")), "it connects again"
    )
    (after,) = system.sql("SELECT clock_timestamp() AS now")
    system.wait_for_caches(
        lambda sa, sb: min(sa["checked_at"], sb["checked_at"]) > after["now"], "it looks again"
    )


def test_figures_count_every_change_of_the_live_checks_own(system: Parts) -> None:
    figures = (
        "SELECT sum(judged[2]) AS judged, sum(seen[2]) AS seen, sum(judged[4]) AS judged_last, sum(n) AS lags"
        " FROM cachesync.consistency, LATERAL (SELECT sum(u) AS n FROM unnest(lags) AS u) AS l"
        f" WHERE entity = '{CANARY}' AND service = 'sa'"
    )
    wait_until(lambda: bool(system.sql(figures)[0]["lags"]), "changes are counted")
    (found,) = system.sql(figures)
    assert 0 < found["seen"] <= found["judged"]
    assert found["judged_last"] > 0
    assert (exported("lag_seconds_count", "sa") or 0) >= found["lags"]
