from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from local.postgres import Postgres
    from local.redis import Redis


def test_x(postgres: Postgres, redis_sa: Redis, redis_sb: Redis) -> None:
    assert postgres.sql("select datname from pg_database order by 1").splitlines() == [
        "cachesync",
        "postgres",
        "template0",
        "template1",
    ]
    assert redis_sa.url != redis_sb.url
