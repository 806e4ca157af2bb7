"""The plugin that Airflow finds, in the installed package or in its plugins folder."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin

# Dark lines on a tile in the color of Airflow's light bar: while the page is open, the bar is dark behind it.
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' "
    "stroke-linecap='round' stroke-linejoin='round'%3E%3Cdefs%3E%3Cg id='i'%3E%3Cellipse cx='10' cy='5.5' "
    "rx='7' ry='2.5'/%3E%3Cpath d='M3 5.5v12c0 1.4 3.1 2.5 7 2.5M17 5.5v4M3 11.5c0 1.4 3.1 2.5 7 2.5"
    "M13.5 17l2.5 2.5 5-5.5'/%3E%3C/g%3E%3C/defs%3E{}%3C/svg%3E"
)
_TILE = "%3Crect width='24' height='24' rx='4' fill='%23dbe7f5'/%3E"
_LINES = "%3Cuse href='%23i' stroke='{}' stroke-width='1.5'/%3E"


class CacheSyncPlugin(AirflowPlugin):
    """Shows db-cache-sync among Airflow's plugins, and its page in Airflow's navigation.

    The sensors, triggers and operators are imported by their paths and need no registration.
    """

    name = "db_cache_sync"
    external_views = [  # noqa: RUF012 - Airflow declares it
        {
            "name": "Caches",
            # Relative to the base URL of Airflow, which can have a path.
            "href": "cachesync/",
            "url_route": "caches",
            "destination": "nav",
            "nav_top_level": True,
            "icon": _ICON.format(_TILE + _LINES.format("%23324158")),
            "icon_dark_mode": _ICON.format(_LINES.format("%23d5dde8")),
        }
    ]

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override] # only ever read
        """The page. Only the API server asks for it, and only there is it imported, which takes a second."""
        from cachesync_airflow.page.app import make_page  # noqa: PLC0415

        return [{"app": make_page(), "url_prefix": "/cachesync", "name": "db-cache-sync"}]
