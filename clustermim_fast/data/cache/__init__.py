"""Decoded images in files that training reads by mmap: `clustermim cache`, docs/data.md."""

from clustermim_fast.data.cache.build import Settings, begun_with, build_cache, clear_cache
from clustermim_fast.data.cache.format import Cache, check_cache
from clustermim_fast.data.cache.sources import open_sources
from clustermim_fast.data.cache.store import CacheStore, cache_listing, open_caches

__all__ = [
    "Cache",
    "CacheStore",
    "Settings",
    "begun_with",
    "build_cache",
    "cache_listing",
    "check_cache",
    "clear_cache",
    "open_caches",
    "open_sources",
]
