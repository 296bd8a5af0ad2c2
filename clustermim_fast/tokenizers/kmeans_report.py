"""What a k-means fit did, iteration by iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Iteration:
    """One Lloyd iteration, or one epoch of mini-batches.

    Attributes:
        inertia: sum of squared distances (for "cosine" of 1 - cosine) of the rows seen, each to its
            centroid before the update.
        moved: rows whose id changed since the iteration before; None where ids are not kept.
        empty: clusters that had no row (Lloyd) or were re-seeded for a low count (mini-batch).
        imbalance: K * sum(n_k^2) / N^2, 1 when all clusters are equally large.
        shift: squared movement of all centroids together.
        seconds: wall time.
    """

    inertia: float
    moved: int | None
    empty: int
    imbalance: float
    shift: float
    seconds: float


@dataclass
class KMeansReport:
    """The whole fit: its iterations, why it stopped and what it repaired.

    Attributes:
        num_rows: rows of the data set (of one pass), those of all ranks.
        reseeded: how often an empty or starved cluster was re-seeded.
        unused: clusters that no row belongs to at the end.
        counts: rows of each cluster in the last pass.
        inertia: of the final centroids (of the last pass when ``exact`` is False).
        exact: True when ``counts`` and ``inertia`` come from a pass with the final centroids.
        stop: why the fit ended.
        seconds: wall time of the whole fit, first centroids and all ``n_init`` runs included.
    """

    algorithm: str
    metric: str
    num_clusters: int
    num_rows: int
    iterations: list[Iteration] = field(default_factory=list)
    reseeded: int = 0
    unused: int = 0
    counts: list[float] = field(default_factory=list)
    inertia: float = float("nan")
    exact: bool = True
    converged: bool = False
    stop: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> KMeansReport:
        """The inverse of :meth:`as_dict`."""
        iterations = [Iteration(**v) for v in values.get("iterations", [])]
        return cls(**{**values, "iterations": iterations})


class Timer:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return elapsed


class Progress:
    """A tqdm bar, or nothing."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def advance(self, **values: float | int | str | None) -> None:
        """One step done; ``values`` are shown beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix({k: v for k, v in values.items() if v is not None}, refresh=False)
            self._bar.update(1)


@contextmanager
def progress(shown: bool, total: int | None, description: str) -> Iterator[Progress]:
    """A progress bar on stderr; tqdm is imported only when it is shown."""
    if not shown:
        yield Progress()
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=description, leave=True) as bar:
        yield Progress(bar)
