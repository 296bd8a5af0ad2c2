"""`clustermim bench`: ours beside the peers that are installed, on a user's own shapes or data."""

from collections.abc import Callable
from typing import Any

from .kmeans import run_kmeans
from .nearest_centroid import run_nearest_centroid
from .settings import Settings

__all__ = ["KEYS", "RUNNERS", "Settings", "run_kmeans", "run_nearest_centroid"]

RUNNERS: dict[str, Callable[..., dict[str, Any]]] = {
    "nearest_centroid": run_nearest_centroid,
    "kmeans": run_kmeans,
}
# What each setting on the command line is read as.
KEYS: dict[str, dict[str, Callable[[str], Any]]] = {
    "nearest_centroid": Settings.keys(),
    "kmeans": {key: read for key, read in Settings.keys().items() if key != "dtype"},
}
