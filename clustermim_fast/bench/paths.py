"""The instruction-set paths that the compiled core offers, and the switches that benchmarks use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from clustermim_fast.ops import _backend

__all__ = [
    "certificate_switchable",
    "isa_paths",
    "projection_switchable",
    "running",
    "uncertified",
    "without_projection",
]


def isa_paths() -> dict[str, str]:
    """Each path's name and "usable", or why it is not; in the core's order, plainest first."""
    return dict(_backend.core().build_info()["isa_paths"])


@contextmanager
def running(isa: str) -> Iterator[None]:
    """Force one path ("auto": the best) for every op of the process inside the block."""
    core = _backend.core()
    core.set_isa(name=isa)
    try:
        yield
    finally:
        core.set_isa(name="auto")


def certificate_switchable() -> bool:
    """Whether this build of the core can leave the certificate out, to see what it costs."""
    return hasattr(_backend.core(), "set_certified")


@contextmanager
def uncertified() -> Iterator[None]:
    """The filter's best candidate is the answer, right or not, inside the block."""
    core = _backend.core()
    core.set_certified(certified=False)
    try:
        yield
    finally:
        core.set_certified(certified=True)


def projection_switchable() -> bool:
    """Whether the core scores in a subspace where that pays, and can be told not to."""
    return hasattr(_backend.core(), "set_projection")


@contextmanager
def without_projection() -> Iterator[None]:
    """Every score from all of the row's values, inside the block."""
    core = _backend.core()
    core.set_projection(when="never")
    try:
        yield
    finally:
        core.set_projection(when="auto")
