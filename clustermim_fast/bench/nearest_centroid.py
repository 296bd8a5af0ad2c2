"""`clustermim bench nearest_centroid`: ours beside the peers that are installed, on one page."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from clustermim_fast import ops
from clustermim_fast.bench.assigners import PEERS, Assign, Peer
from clustermim_fast.bench.settings import Settings, Tell, to_stderr
from clustermim_fast.bench.timing import (
    Timing,
    aligned_table,
    interleave,
    machine,
    machine_line,
)

OURS = "ours: ops.nearest_centroid"
SLOW_WORK = 4e10  # multiply-adds that a slow peer gets; beyond it gets fewer rows
CHECKED_VALUES = 5e8  # float64 differences that the reference looks at to count wrong ids
MAX_SECONDS = 10.0
ROUNDS, FILL_SECONDS = 5, 2.0  # a short method gets more rounds, until they take so long together
WRONG_IDS = "wrong ids: answers that are not the nearest centroid in exact arithmetic; looked at:"
TIERS = ("float32", "float64", "exact")  # that re-score what the filter leaves open
WHOLE_SUITE = "on real images, with limits and every ISA path: benchmarks/ of the source repository"


def prepare(peers: list[Peer], c: torch.Tensor) -> tuple[dict[str, Assign], list[str]]:
    """Peers ready to assign, and lines about those that refuse the centroids."""
    ready, lines = {}, []
    for peer in peers:
        try:
            ready[peer.name] = peer.make(c)
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            lines.append(f"left out: {peer.name}: {first_line(error)}")
    return ready, lines


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def rows_for(peer: Peer | None, x: torch.Tensor, c: torch.Tensor) -> int:
    """How many rows a method is given."""
    if peer is None or not peer.slow:
        return len(x)
    return max(1, min(len(x), int(SLOW_WORK / c.numel())))


def first_ids(
    methods: Mapping[str, Callable[[], Any]], tell: Tell
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The ids of one call of each, and lines about those that failed."""
    ids, lines = {}, []
    for number, (name, call) in enumerate(methods.items(), 1):
        tell(f"first call, {number} of {len(methods)}: {name}")
        try:
            ids[name] = torch.as_tensor(call()).long()
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            if name == OURS:
                raise
            lines.append(f"left out: {name}: {first_line(error)}")
    return ids, lines


def count_wrong(
    x: torch.Tensor, c: torch.Tensor, ids: Mapping[str, torch.Tensor], seed: int = 0
) -> tuple[dict[str, int], str]:
    """Wrong ids of each method, and in words on which rows they were counted.

    The reference back-end (float64 with its own rounding bound, exact fractions beyond it) settles
    the rows on which methods differ, and a random sample of those on which all agree.
    """
    limit = max(16, int(CHECKED_VALUES / c.numel()))
    ours = ids[OURS]
    differs = torch.zeros(len(x), dtype=torch.bool)
    for found in ids.values():
        differs[: len(found)] |= found != ours[: len(found)]
    generator = torch.Generator().manual_seed(seed)
    open_rows, agreed = differs.nonzero()[:, 0], (~differs).nonzero()[:, 0]
    settled = open_rows[torch.randperm(len(open_rows), generator=generator)[:limit]]
    sample = agreed[torch.randperm(len(agreed), generator=generator)[:limit]]
    rows = torch.cat([settled, sample])
    truth = ops.nearest_centroid(x[rows], c, backend="reference")
    wrong = {}
    for name, found in ids.items():
        seen = rows < len(found)
        wrong[name] = int((found[rows[seen]] != truth[seen]).sum())
    return wrong, (
        f"{len(settled):,} of the {len(open_rows):,} rows on which the methods disagree, "
        f"{len(sample):,} of the {len(agreed):,} on which all agree"
    )


def run_nearest_centroid(
    *, say: Tell = print, tell: Tell = to_stderr, **given: Any
) -> dict[str, Any]:
    """Time exact assignment beside the peers, count everyone's wrong ids, print one page.

    Args:
        say: prints the page; tell: prints what runs now.
        given: fields of :class:`Settings`; peers are those of :data:`PEERS`.

    Returns what was measured; ValueError for settings that make no sense, naming the remedy.
    """
    settings = Settings(**given)
    chosen, _, notes = settings.choose(PEERS)
    x, c, source = settings.read(settings.dtype)
    with settings.limited():
        result = _measure(x, c, chosen, settings.rounds, notes, tell)
    result |= {"source": source, "dtype": str(x.dtype).removeprefix("torch."), "notes": notes}
    return settings.publish(result, _page(result), say)


def _measure(
    x: torch.Tensor,
    c: torch.Tensor,
    chosen: list[Peer],
    rounds: int | None,
    notes: list[str],
    tell: Tell,
) -> dict[str, Any]:
    """Times, wrong ids, tiers; adds to ``notes``."""
    theirs = torch.float64 if x.dtype == torch.float64 else torch.float32
    peer_x, peer_c = x.to(theirs), c.to(theirs)
    ready, lines = prepare(chosen, peer_c)
    given = {p.name: peer_x[: rows_for(p, x, c)] for p in chosen if p.name in ready}
    methods: dict[str, Callable[[], Any]] = {OURS: lambda: ops.nearest_centroid(x, c)}
    for name, assign in ready.items():
        methods[name] = partial(assign, given[name])
    ids, failed = first_ids(methods, tell)
    notes += [*lines, *failed]
    methods = {name: call for name, call in methods.items() if name in ids}
    tell("counting wrong ids")
    wrong, counted_on = count_wrong(x, c, ids)
    timings = interleave(
        methods,
        rounds=rounds or ROUNDS,
        max_seconds=MAX_SECONDS,
        fill_seconds=0.0 if rounds else FILL_SECONDS,
        tell=tell,
    )
    with ops.record_stats():
        methods[OURS]()
    stats = ops.assignment_stats()
    ours = timings[OURS].minimum / len(x)
    return {
        "rows": len(x),
        "dim": x.shape[1],
        "num_centroids": len(c),
        "threads": torch.get_num_threads(),
        "methods": {
            name: _method(timing, len(ids[name]), wrong[name], ours)
            for name, timing in timings.items()
        },
        "wrong_counted_on": counted_on,
        "tiers": {
            name: getattr(stats, name) for name in ("rows", "filter", "float32", "float64", "exact")
        },
        "machine": machine() | {"architecture": platform.machine()},
    }


def _method(timing: Timing, rows: int, wrong: int, ours: float) -> dict[str, Any]:
    return {
        "rows": rows,
        "rounds": len(timing.seconds),
        "ns_per_row": timing.minimum / rows * 1e9,
        "ns_per_row_median": timing.median / rows * 1e9,
        "times_ours": timing.minimum / rows / ours,
        "wrong_ids": wrong,
    }


def _page(result: dict[str, Any]) -> str:
    table = [
        (
            name,
            f"{m['ns_per_row']:,.1f}",
            f"{m['ns_per_row_median']:,.1f}",
            f"{m['times_ours']:.2f}",
            m["wrong_ids"],
            f"{m['rows']:,}",
            m["rounds"],
        )
        for name, m in sorted(result["methods"].items(), key=lambda item: item[1]["ns_per_row"])
    ]
    tiers = result["tiers"]
    shares = ", ".join(
        f"{name} {100 * tiers[name] / max(1, tiers['rows']):.3f} %" for name in TIERS
    )
    header = ("method", "ns/row", "median", "x ours", "wrong ids", "rows", "rounds")
    title = (
        f"nearest_centroid: N = {result['rows']:,}, D = {result['dim']}, "
        f"K = {result['num_centroids']:,}, {result['dtype']}, {result['threads']} threads"
    )
    return "\n".join(
        [
            title,
            f"{result['source']}; minimum of interleaved rounds",
            "",
            aligned_table(header, table),
            "",
            f"{WRONG_IDS} {result['wrong_counted_on']}",
            f"ours re-scored rows in: {shares}",
            *result["notes"],
            f"machine: {machine_line()}",
            f"the whole suite, {WHOLE_SUITE}",
        ]
    )
