"""The app of Django."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.db import connections
from django.db.backends.signals import connection_created

from cachesync.contrib.django.configured import caches, database_alias
from cachesync.contrib.django.transactions import follow

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


class CacheSyncConfig(AppConfig):
    """Follows the transactions of the connections to the database of the setting CACHESYNC."""

    name = "cachesync.contrib.django"
    label = "cachesync"
    verbose_name = "db-cache-sync"

    def ready(self) -> None:
        """Check the settings, and follow the connections that Django opens from now on."""
        caches()
        connection_created.connect(_follow_new, dispatch_uid="cachesync")
        for connection in connections.all(initialized_only=True):
            if connection.connection is not None:
                _follow_new(connection=connection)


def _follow_new(*, connection: BaseDatabaseWrapper, **_: Any) -> None:
    if connection.alias == database_alias():
        follow(connection)
