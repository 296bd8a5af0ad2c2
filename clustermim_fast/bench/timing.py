"""How everything is timed: warm-up, interleaved rounds, minimum and median; threads; the machine.

Methods that are compared run in turn, round by round, in an order that rotates: a machine that
slows down for a minute slows all of them, and the first of a round is not always the same one.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "scikit-learn", "scikit-learn-intelex", "faiss-cpu", "scipy")


TELL_SECONDS = 5.0


@dataclass
class Timing:
    """Seconds of every round; the minimum is what the tables show."""

    seconds: list[float] = field(default_factory=list)

    @property
    def minimum(self) -> float:
        """The shortest round, seconds."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median round, seconds."""
        return statistics.median(self.seconds)


def interleave(
    methods: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    min_seconds: float = 0.05,
    max_seconds: float | None = None,
    fill_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Timing]:
    """Time every method once a round, after one warm-up call of each.

    Methods shorter than ``min_seconds`` repeat inside a round until they take that long. One whose
    rounds have taken ``max_seconds`` together sits out the rest (it always has one round); those
    that have not taken ``fill_seconds`` get up to three times more. ``tell`` hears what runs now.
    On a busy machine ``clock=time.process_time`` (with one thread for all) leaves out what others
    ran.
    """
    repeats = {}
    for number, (name, call) in enumerate(methods.items(), 1):
        tell(f"warming up, {number} of {len(methods)}: {name}")
        seconds = _seconds(call, 1, clock)
        if seconds < min_seconds:  # the first call of a short method says little
            seconds = _seconds(call, 1, clock)
        repeats[name] = max(1, int(min_seconds / max(seconds, 1e-9)))
    timings = {name: Timing() for name in methods}
    spent = dict.fromkeys(methods, 0.0)
    names = list(methods)
    told, i = time.monotonic(), 0
    while i < rounds or (i < 3 * rounds and min(spent.values()) < fill_seconds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            limit = max_seconds if i < rounds else fill_seconds
            if limit is not None and spent[name] >= limit:
                continue
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                tell(f"timing, round {i + 1}: {name}")
            seconds = _seconds(methods[name], repeats[name], clock)
            timings[name].seconds.append(seconds)
            spent[name] += seconds * repeats[name]
        i += 1
    return timings


def _seconds(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    gc.collect()
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """The same number for torch (and with it ours and faiss), OpenMP, OpenBLAS and oneDAL."""
    before = torch.get_num_threads()
    with ExitStack() as stack:
        torch.set_num_threads(threads)
        stack.callback(torch.set_num_threads, before)
        try:
            import threadpoolctl  # comes with scikit-learn
        except ImportError:
            pass
        else:
            stack.enter_context(threadpoolctl.threadpool_limits(threads))
        try:
            import daal4py  # comes with scikit-learn-intelex
        except ImportError:
            pass
        else:
            daal4py.daalinit(threads)
            stack.callback(daal4py.daalinit, os.cpu_count() or 1)
        yield


def machine() -> dict[str, Any]:
    """What a number depends on: processor, cores, load, versions."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def machine_line() -> str:
    """:func:`machine` in words."""
    facts = machine()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['processor']}, {facts['cores']} cores, load {facts['load_1min']}, "
        f"Python {facts['python']}, {versions}, {facts['date']}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Text columns: the first to the left, the others to the right."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
