"""Settings of the DAGs and triggers, read from Airflow's environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cachesync.background import BackgroundSettings, ServiceNames


class MetricsSettings(BackgroundSettings):
    """Where a triggerer serves the metrics of its streams and relays.

    Attributes:
        metrics_port: the port; None to serve none.
        listen_address: the address to listen on; `0.0.0.0` in a container.
    """

    metrics_port: Annotated[int | None, Field(gt=0, lt=65536)] = None
    listen_address: str = "127.0.0.1"


class AirflowSettings(MetricsSettings):
    """Settings, read from environment variables with the prefix `CACHESYNC_` and these names in upper case.

    Attributes:
        caches: the services that have a cache, separated by commas. The Airflow connections
            `redis_{service}` and `kafka_{service}` configure each service's Redis and consumer group.
        entities: the entities file.
        consumers_per_cache: the number of consumers that share the load of each cache.
        handover_hours: how long a run of `cache_sync` or `outbox_relay` lasts before the next one, in hours.
    """

    caches: ServiceNames
    entities: Path = Path("entities.toml")
    consumers_per_cache: Annotated[int, Field(gt=0, le=100)] = 1
    handover_hours: Annotated[float, Field(gt=0, le=24)] = 12
