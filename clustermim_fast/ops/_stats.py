"""How often each precision tier of the exact assignment was needed: the price of certainty."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class AssignmentStats:
    """Rows of the last assignment call by the tier that decided them.

    rows: all rows; filter: decided by the low-precision filter's rounding bound; float32, float64:
    re-scored in that precision; exact: decided by exact arithmetic; invalid: rows with NaN or Inf,
    id -1; undecided: always 0.
    """

    rows: int
    filter: int
    float32: int
    float64: int
    exact: int
    invalid: int
    undecided: int = 0


_state = threading.local()


@contextmanager
def record_stats() -> Iterator[None]:
    """Keep the tier counts of assignment calls made by this thread inside the block."""
    before = recording()
    _state.recording = True
    try:
        yield
    finally:
        _state.recording = before


def recording() -> bool:
    """Whether this thread is inside :func:`record_stats`: counts on a GPU are read only then."""
    return getattr(_state, "recording", False)


def assignment_stats() -> AssignmentStats:
    """Tier counts of the last assignment call under :func:`record_stats` in this thread.

    Raises RuntimeError when no call was recorded.
    """
    stats: AssignmentStats | None = getattr(_state, "last", None)
    if stats is None:
        raise RuntimeError(
            "assignment_stats: nothing was recorded; run the op under `with ops.record_stats():`"
        )
    return stats


def note(rows: int, float32: int, float64: int, exact: int, invalid: int) -> None:
    """Called by the back-ends after each assignment."""
    if recording():
        decided = rows - float32 - float64 - exact - invalid
        _state.last = AssignmentStats(rows, decided, float32, float64, exact, invalid)
