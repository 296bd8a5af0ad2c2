"""The methods of the assignment tables, and one measured row of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.harness import interleave, say
from clustermim_fast import ops
from clustermim_fast.bench.assigners import PEERS, Peer
from clustermim_fast.bench.nearest_centroid import SLOW_WORK, TIERS, prepare
from clustermim_fast.bench.paths import (
    certificate_switchable,
    isa_paths,
    projection_switchable,
    running,
    uncertified,
    without_projection,
)

OURS, UNCERTIFIED = "ours", "ours, uncertified"
CERTIFIED_ONLY = "uncertified: not offered by this build of the core"


@dataclass
class Row:
    """One line of a table. kind: "ours" | "peer"; rows: timed and checked for wrong ids."""

    section: str
    workload: str
    dim: int
    num_centroids: int
    method: str
    kind: str
    threads: int
    held: str
    ns_per_row: float
    ns_per_row_median: float
    rounds: int
    rows: int
    wrong_ids: int
    limit_ns: float = 0.0
    ratio_to_best_peer: float = 0.0
    rescored: dict[str, float] = field(default_factory=dict)


def inside(block: Callable[[], Any], call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` inside the context manager that ``block()`` makes."""

    def run() -> Any:
        with block():
            return call()

    return run


def forced(isa: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` on one ISA path."""
    return inside(partial(running, isa), call)


def usable_isas() -> list[str]:
    """The ISA paths that can run here, plainest first; the last is what "auto" takes."""
    return [name for name, state in isa_paths().items() if state == "usable"]


def our_variants(options: Any) -> dict[str, Callable[[Callable[[], Any]], Callable[[], Any]]]:
    """By name, what makes a call of ours into a call of that variant.

    Ours as it chooses, each ISA path by force, uncertified, and never in a subspace, as far as this
    core has the switches. Where the peers are held to an ISA ours runs that path.
    """
    if options.held:
        return {f"{OURS}, {options.held}": partial(forced, options.held)}
    variants: dict[str, Any] = {OURS: lambda call: call}
    for isa in usable_isas()[:-1]:
        if "all" in options.isa or isa in options.isa:
            variants[f"{OURS}, {isa}"] = partial(forced, isa)
    if certificate_switchable():
        variants[UNCERTIFIED] = partial(inside, uncertified)
    if projection_switchable():
        variants[f"{OURS}, without projection"] = partial(inside, without_projection)
    return variants


def ready_peers(c: torch.Tensor, options: Any) -> dict[str, tuple[Peer, Callable]]:
    """Installed peers, prepared with the centroids; held to an ISA, only those near the best."""
    peers = {}
    for peer in PEERS:
        wanted = "all" in options.peers or peer.key in options.peers
        if peer.missing():
            say(f"NOT INSTALLED, so not compared: {peer.name}")
        elif wanted and not (options.held and peer.slow):
            peers[peer.name] = peer
    ready, lines = prepare(list(peers.values()), c)
    for line in lines:
        say(line)
    return {name: (peers[name], assign) for name, assign in ready.items()}


def allowed_rows(method: str, num_rows: int, work_per_row: int, slow: bool) -> int:
    """How many rows a method is given: slow peers and the generic path fewer of a large problem."""
    if slow or method.endswith(", generic"):
        return max(1, min(num_rows, int(SLOW_WORK / work_per_row)))
    return num_rows


def measure(
    methods: Mapping[str, Callable[[], Any]],
    sizes: Mapping[str, int],
    truth: np.ndarray,
    options: Any,
) -> dict[str, tuple[Any, int]]:
    """By method, its timing and the wrong ids of its first call, all rounds interleaved.

    ``sizes`` are rows of each method, the first ones of ``truth``. A method that fails is left out.
    """
    wrong: dict[str, int] = {}
    failed: set[str] = set()

    def watched(name: str) -> None:
        if name in failed:
            return
        try:
            ids = methods[name]()
        except (RuntimeError, ValueError, TypeError, OSError, ImportError) as error:
            if name.startswith(OURS):
                raise
            say(f"LEFT OUT: {name}: {str(error).splitlines()[0]}")
            failed.add(name)
            return
        if name not in wrong:  # the warm-up, not timed
            wrong[name] = int((np.asarray(ids).reshape(-1) != truth[: sizes[name]]).sum())

    timings = interleave(
        {name: partial(watched, name) for name in methods},
        rounds=options.rounds,
        min_seconds=0.02,
        max_seconds=options.max_seconds,
    )
    return {name: (t, wrong[name]) for name, t in timings.items() if name not in failed}


def rescored_shares(call: Callable[[], Any]) -> dict[str, float]:
    """Percent of the rows that each tier behind the filter decided."""
    with ops.record_stats():
        call()
    stats = vars(ops.assignment_stats())
    rows = max(1, stats["rows"])
    return {name: round(100.0 * stats[name] / rows, 4) for name in TIERS}
