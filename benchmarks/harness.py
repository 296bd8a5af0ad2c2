"""How everything here is timed: warm-up, interleaved rounds, minimum and median, the machine noted.

Methods that are compared run in turn, round by round, in an order that rotates: a machine that
slows down for a minute slows all of them, and the first of a round is not always the same one.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Timing:
    """Seconds of every round; the minimum is what the tables show."""

    seconds: list[float] = field(default_factory=list)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleave(
    methods: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    min_seconds: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every method once a round, after one warm-up call of each.

    Methods shorter than ``min_seconds`` repeat inside a round until they take that long. On a busy
    machine ``clock=time.process_time`` (with one thread for all) leaves out what others ran.
    """
    repeats = {}
    for name, call in methods.items():
        seconds = _seconds(call, 1, clock)
        if seconds < min_seconds:  # the first call of a short method says little
            seconds = _seconds(call, 1, clock)
        repeats[name] = max(1, int(min_seconds / seconds))
    timings = {name: Timing() for name in methods}
    names = list(methods)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            timings[name].seconds.append(_seconds(methods[name], repeats[name], clock))
    return timings


def _seconds(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    gc.collect()
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def machine() -> dict[str, Any]:
    """What a number depends on: processor, cores, load, versions, commit."""
    versions = {}
    for name in ("torch", "numpy", "scikit-learn", "scikit-learn-intelex", "faiss-cpu", "scipy"):
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
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "clustermim_fast", "csrc")),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "-|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_json(path: str | Path, results: Sequence[Any]) -> None:
    """``results`` (dataclasses or dicts) and the machine as one JSON file."""
    plain = [r if isinstance(r, dict) else asdict(r) for r in results]
    Path(path).write_text(json.dumps({"machine": machine(), "results": plain}, indent=1) + "\n")
