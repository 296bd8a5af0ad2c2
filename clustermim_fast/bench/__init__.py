"""`clustermim bench`: ours beside the peers that are installed, on a user's own shapes or data."""

from collections.abc import Callable
from typing import Any

from .kmeans import run_kmeans
from .nearest_centroid import run_nearest_centroid

__all__ = ["KEYS", "RUNNERS", "run_kmeans", "run_nearest_centroid"]

RUNNERS: dict[str, Callable[..., dict[str, Any]]] = {
    "nearest_centroid": run_nearest_centroid,
    "kmeans": run_kmeans,
}
_SHARED: dict[str, Callable[[str], Any]] = {
    "n": int,
    "d": int,
    "k": int,
    "file": str,
    "centroids": str,
    "peers": str,
    "rounds": int,
    "threads": int,
    "seed": int,
    "json": str,
}
# What each setting on the command line is read as.
KEYS: dict[str, dict[str, Callable[[str], Any]]] = {
    "nearest_centroid": {**_SHARED, "dtype": str},
    "kmeans": _SHARED,
}
