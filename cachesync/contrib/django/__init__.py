"""Django: `caches()` are those of the setting CACHESYNC, and each transaction follows itself.

Add `cachesync.contrib.django` to INSTALLED_APPS. Models with `cached = CachedRows()` read their rows through
the cache.
"""

from cachesync.contrib.django.configured import caches
from cachesync.contrib.django.rows import CachedRows

__all__ = ["CachedRows", "caches"]
