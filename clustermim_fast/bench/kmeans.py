"""`clustermim bench kmeans`: one Lloyd iteration of ours beside the peers that are installed."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clustermim_fast import ops
from clustermim_fast.bench.assigners import INSTALL
from clustermim_fast.bench.inputs import (
    read_or_make,
    require_choice,
    require_count,
    require_writable,
)
from clustermim_fast.bench.lloyd_peers import (
    LLOYD_PEERS,
    Array,
    LloydPeer,
    batches,
    fit_ours,
    minibatch_ours,
    minibatch_sklearn,
)
from clustermim_fast.bench.timing import (
    Timing,
    aligned_table,
    interleave,
    limited_threads,
    machine,
    machine_line,
)

OURS = "ours: KMeans"
OUR_STEP = "ours: ops.lloyd_step alone"
LONG_FIT = 5  # an iteration is (this many - 1 iteration) / (this many - 1)
BATCH_SIZES = (4096, 10_000)
MAX_SECONDS = 20.0


def measure(
    x: Array,
    c: Array,
    peers: Iterable[LloydPeer],
    *,
    rounds: int,
    minibatch: bool,
    batch_sizes: Iterable[int] = BATCH_SIZES,
    max_seconds: float = MAX_SECONDS,
) -> dict[str, dict[str, Any]]:
    """By method: ``ns_per_point`` of an iteration, and ``kind`` "lloyd", "step" or "minibatch".

    Args:
        x: float32 [N, D]; c: float32 [K, D], where every fit starts.
        minibatch: also time ``partial_fit``, ours and scikit-learn's, for each of ``batch_sizes``.
    """
    fits = {OURS: fit_ours} | {peer.name: peer.fit for peer in peers}
    calls: dict[str, Callable[[], Any]] = {}
    for name, fit in fits.items():
        calls[f"{name} x 1"] = partial(fit, x, c, 1)
        calls[f"{name} x {LONG_FIT}"] = partial(fit, x, c, LONG_FIT)
    tensor, centroids = torch.from_numpy(x), torch.from_numpy(c)
    calls[OUR_STEP] = lambda: ops.lloyd_step(tensor, centroids)
    seen: dict[str, int] = {}
    if minibatch:
        for size in batch_sizes:
            for name, make in (
                ("ours: KMeans", minibatch_ours),
                ("sklearn Mini", minibatch_sklearn),
            ):
                key = _minibatch_name(name, size)
                calls[key] = make(x, c, size)
                seen[key] = sum(map(len, batches(x, size)))
    timings = interleave(calls, rounds=rounds, max_seconds=max_seconds)
    result = {name: _iteration(timings, name, len(x)) for name in fits}
    result[OUR_STEP] = _row("step", timings[OUR_STEP], len(x))
    return result | {key: _row("minibatch", timings[key], rows) for key, rows in seen.items()}


def _minibatch_name(name: str, size: int) -> str:
    full = f"{name}BatchKMeans" if name.startswith("sklearn") else name
    return f"{full}.partial_fit, batches of {size:,}"


def _iteration(timings: dict[str, Timing], name: str, rows: int) -> dict[str, Any]:
    short, long = timings[f"{name} x 1"], timings[f"{name} x {LONG_FIT}"]
    scale = 1e9 / rows / (LONG_FIT - 1)
    return {
        "kind": "lloyd",
        "ns_per_point": (long.minimum - short.minimum) * scale,
        "ns_per_point_median": (long.median - short.median) * scale,
        "rounds": min(len(short.seconds), len(long.seconds)),
    }


def _row(kind: str, timing: Timing, rows: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "ns_per_point": timing.minimum / rows * 1e9,
        "ns_per_point_median": timing.median / rows * 1e9,
        "rounds": len(timing.seconds),
    }


def choose_peers(text: str) -> tuple[list[LloydPeer], bool, list[str]]:
    """The peers of "all", "none" or "key,key"; whether mini-batches too; lines on missing ones."""
    keys = [peer.key for peer in LLOYD_PEERS]
    whole = {"all": [*keys, "minibatch"], "none": []}
    names = whole.get(text, text.split(","))
    for name in names:
        require_choice("peers", name, (*keys, "minibatch", *(whole if "," not in text else ())))
    chosen = [peer for peer in LLOYD_PEERS if peer.key in names]
    lines = [
        f"not installed: {p.name} needs {p.missing()}: {INSTALL}" for p in chosen if p.missing()
    ]
    return [peer for peer in chosen if not peer.missing()], "minibatch" in names, lines


def run_kmeans(
    *,
    n: int | None = None,
    d: int | None = None,
    k: int | None = None,
    file: str = "",
    centroids: str = "",
    peers: str = "all",
    rounds: int = 3,
    threads: int | None = None,
    seed: int = 0,
    json: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time one Lloyd iteration, float32, beside the peers; print one page.

    The cost of an iteration is a quarter of what five cost more than one, from the same centroids.

    Args:
        n, d, k, file, centroids, rounds, threads, seed, json, say: as in
            :func:`run_nearest_centroid`.
        peers: "all", "none", or keys with commas: those of :data:`LLOYD_PEERS` and "minibatch"
            (scikit-learn's MiniBatchKMeans.partial_fit).

    Returns what was measured; ValueError for settings that make no sense, naming the remedy.
    """
    require_count("rounds", rounds)
    require_count("threads", threads)
    require_writable("json", json)
    chosen, minibatch, notes = choose_peers(peers)
    x, c, source = read_or_make(n, d, k, "float32", file, centroids, seed)
    with limited_threads(threads or torch.get_num_threads()):
        methods = measure(x.numpy(), c.numpy(), chosen, rounds=rounds, minibatch=minibatch)
        used = torch.get_num_threads()
    result = {
        "rows": len(x),
        "dim": x.shape[1],
        "num_centroids": len(c),
        "threads": used,
        "source": source,
        "methods": methods,
        "notes": notes,
        "machine": machine(),
    }
    say(_page(result))
    if json:
        Path(json).write_text(json_module.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _page(result: dict[str, Any]) -> str:
    methods = result["methods"]
    ours = methods[OURS]["ns_per_point"]
    table = [
        (name, f"{m['ns_per_point']:,.1f}", f"{m['ns_per_point'] / ours:.2f}", m["rounds"])
        for name, m in methods.items()
    ]
    title = (
        f"kmeans: N = {result['rows']:,}, D = {result['dim']}, "
        f"K = {result['num_centroids']:,}, float32, {result['threads']} threads"
    )
    return "\n".join(
        [
            title,
            f"{result['source']}; minimum of interleaved rounds",
            f"ns a point of a Lloyd iteration: ({LONG_FIT} iterations - 1) / {LONG_FIT - 1}",
            "",
            aligned_table(("method", "ns/point", "x ours", "rounds"), table),
            "",
            *result["notes"],
            f"machine: {machine_line()}",
        ]
    )
