"""The command `cachesync dead-letters` on a real PostgreSQL, Redis and Kafka."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from cachesync.cli import options
from cachesync.cli.main import app
from cachesync.kafka.topics import PARKING_LOT
from cachesync.value import encode_value
from tests.integration.conftest import ENTITIES_FILE
from tests.integration.post import PAYLOAD, Post
from tests.integration.refusals import denying

if TYPE_CHECKING:
    from typer.testing import Result

    from local.redis import Redis


class Command:
    """Runs the command on the test servers as a user would."""

    def __init__(self, post: Post, dsn: str, redis_url: str) -> None:
        self._environment = {
            "COLUMNS": "250",
            "CACHESYNC_DSN": dsn,
            "CACHESYNC_ENTITIES": str(ENTITIES_FILE),
            "CACHESYNC_REDIS_URLS": f"{post.service}={redis_url}",
            "KAFKA_BOOTSTRAP_SERVERS": post.kafka["bootstrap.servers"],
        }

    async def __call__(self, *arguments: str, status: int = 0, **environment: str) -> Result:
        variables = self._environment | environment
        result = await asyncio.to_thread(CliRunner().invoke, app, ["dead-letters", *arguments], env=variables)
        assert result.exit_code == status, result.output
        return result

    async def json(self, *arguments: str) -> Any:
        """Return the JSON on standard output."""
        return json.loads((await self(*arguments)).stdout)


@pytest.fixture
def command(post: Post, worker_dsn: str, redis_sb: Redis) -> Command:
    return Command(post, worker_dsn, redis_sb.url)


async def test_list_shows_only_open_letters(post: Post, command: Command) -> None:
    post.put(b"7", 20)
    post.put(b"8", b"junk", stage="decode", error="no row version")
    post.put(b"9", 30, topic=PARKING_LOT, attempt="5")
    mine = ("list", "--service", post.service)
    answer = await command.json(*mine, "--json")
    assert answer["open"] == 3
    first, second, third = answer["letters"]
    assert first["letter"].startswith("dead-letters:0:")
    assert (first["key"], first["version"], first["attempt"], first["maximum"]) == ("7", 20, 1, 5)
    assert (second["version"], second["stage"], second["error"]) == (None, "decode", "no row version")
    assert third["letter"].startswith("parking-lot:0:")

    await command("discard", first["letter"], "--reason", "known")
    table = await command(*mine)
    assert "2 open" in table.output
    assert third["letter"] in table.stdout
    assert first["letter"] not in table.stdout
    few = await command.json(*mine, "--json", "--limit", "1")
    assert (few["open"], len(few["letters"])) == (2, 1)
    for narrowed in (["--topic", "parking-lot"], ["--key", "9"], ["--entity", "student", "--key", "9"]):
        assert (await command.json(*mine, "--json", *narrowed))["letters"] == [third]


async def test_letters_are_selected_by_the_text_of_a_key_of_several_columns(
    post: Post, command: Command
) -> None:
    for key in (b"7/a~1b", b"7/a"):
        post.put(key, 20, original_topic="cachesync.grade")
    mine = ("--service", post.service, "--key", "7/a~1b")
    (letter,) = (await command.json("list", *mine, "--json"))["letters"]
    assert (letter["entity"], letter["key"]) == ("grade", "7/a~1b")
    await command("discard", *mine, "--reason", "known")
    (other,) = (await command.json("list", "--service", post.service, "--json"))["letters"]
    assert other["key"] == "7/a"


async def test_letters_with_hostile_fields_are_listed_counted_and_shown(post: Post, command: Command) -> None:
    hostile = f"{post.service}\0\x1b[31m"
    post.put(b"\xff\0", 20, service=hostile, timestamp=-(2**62), original_topic="\0\x1b", error="\x1b[2J")
    (letter,) = (await command.json("list", "--service", hostile, "--json"))["letters"]
    assert letter["service"] == hostile
    shown = await command.json("show", letter["letter"])
    assert shown["open"]
    assert hostile in {group["service"] for group in (await command.json("stats", "--json"))["open"]}
    for table in (await command("list", "--service", hostile), await command("stats")):
        assert not {character for character in table.stdout if not character.isprintable()} - {"\n"}
    await command("discard", letter["letter"], "--reason", "known")
    assert (await command.json("list", "--service", hostile, "--json"))["open"] == 0


async def test_show_prints_a_letter_and_the_actions_on_its_message(post: Post, command: Command) -> None:
    post.put(b"7", 20)
    (letter,) = (await command.json("list", "--service", post.service, "--json"))["letters"]
    shown = await command.json("show", letter["letter"])
    assert shown | letter == shown
    assert shown["open"] is True
    assert shown["original"] == {
        "topic": "cachesync.student",
        "partition": "3",
        "offset": "77",
        "timestamp": "1767323045000",
        "group": "a group",
    }
    assert ["ce_rowversion", "20"] in shown["headers"]
    assert ["other", None] in shown["headers"]
    assert shown["value"].startswith("base64:")
    assert shown["history"] == []
    await command("discard", letter["letter"], "--reason", "seen to by hand")
    shown = await command.json("show", letter["letter"])
    assert shown["open"] is False
    (done,) = shown["history"]
    assert (done["action"], done["reason"], done["letter"]) == (
        "discarded",
        "seen to by hand",
        letter["letter"],
    )
    assert "@" in done["actor"]
    assert (
        "letter parking-lot:0:999999999 does not exist or has expired"
        in (await command("show", "parking-lot:0:999999999", status=1)).output
    )


async def test_stats_counts_open_letters_and_recent_actions(post: Post, command: Command) -> None:
    post.put(b"7", 20, count=3)
    post.put(b"7", 20, not_before="2099-01-01T00:00:00+00:00")
    post.put(b"8", b"junk", stage="decode", topic=PARKING_LOT)
    answer = await command.json("stats", "--json")
    groups = [group for group in answer["open"] if group["service"] == post.service]
    assert [(group["topic"], group["stage"], group["letters"], group["due"]) for group in groups] == [
        ("dead-letters", "cache", 4, 3),
        ("parking-lot", "decode", 1, 0),
    ]
    assert groups[0]["first_failed_at"] == "2026-01-02T03:04:05+00:00"
    await command("discard", "--service", post.service, "--reason", "a test")
    answer = await command.json("stats", "--json")
    assert not [group for group in answer["open"] if group["service"] == post.service]
    assert sum(done["letters"] for done in answer["last_day"] if done["action"] == "discarded") >= 5
    assert "discarded by" in (await command("stats")).stdout


async def test_replay_updates_the_cache_and_reports_the_letters_that_failed(
    post: Post, command: Command
) -> None:
    version, row = await post.insert(7)
    behind = encode_value(version - 1, b"01234567", b"{}")
    post.slots.set(f"{post.service}:student:7", behind)
    post.put(b"7", version, topic=PARKING_LOT)
    post.put(b"8", 20, topic=PARKING_LOT)
    post.put(b"9", 20)
    mine = ("replay", "--service", post.service)

    with denying(post.slots, "8"):
        result = await command(*mine, "--dry-run", status=3)
        assert "dry run: 1 resolved, 1 superseded" in result.stdout
        assert post.slots.get(f"{post.service}:student:7") == behind
        assert await post.audit() == []

        result = await command(*mine, "--rate", "1000", status=3)
        assert "1 resolved, 1 superseded" in result.stdout
        assert "to access" in result.output
        assert "1 not closed" in result.output
        assert post.slots.get(f"{post.service}:student:7") == row

    assert "1 superseded" in (await command(*mine)).stdout
    assert "no letters closed" in (await command(*mine)).stdout


async def test_ambiguous_or_malformed_arguments_are_rejected(post: Post, command: Command) -> None:
    post.put(b"7", 20)
    for arguments, text in (
        (("replay",), "replay requires letters, a topic, a service, an entity or a key; set all (--all) to"),
        (("discard", "--reason", "x"), "discard requires letters, a topic"),
        (("discard", "--all", "--reason", " "), "discard requires a reason"),
        (
            ("replay", "0:7"),
            "'0:7' is not the name of a letter, such as parking-lot:0:17; list shows the names",
        ),
        (("show", "17"), "'17' is not the name of a letter, such as parking-lot:0:17"),
    ):
        assert text in (await command(*arguments, status=1)).output.replace("\n", " ")
    (letter,) = (await command.json("list", "--service", post.service, "--json"))["letters"]
    assert letter["key"] == "7"
    result = await command("replay", letter["letter"], status=3, CACHESYNC_REDIS_URLS="")
    assert f"1 skipped: no Redis given for {post.service}" in result.output
    assert "no such open letter" not in result.output
    assert "1 not closed" in result.output
    result = await command("discard", "parking-lot:0:999999999", "--reason", "x", status=3)
    assert "no such open letter: parking-lot:0:999999999" in result.output


async def test_unavailable_broker_ends_a_command_with_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "_KAFKA_SECONDS", 1)
    result = await command("list", status=1, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert result.output.startswith("cachesync: Kafka at 127.0.0.1:1: ")
    assert len(result.output.splitlines()) == 1


async def test_replayed_letters_keep_their_bytes(post: Post, command: Command) -> None:
    post.put(b"8", 20, topic=PARKING_LOT)
    with denying(post.slots, "8"):
        await command("replay", "--service", post.service, status=3)
    (parked,) = post.letters(PARKING_LOT)
    assert (parked.key, parked.value) == (b"8", PAYLOAD)
