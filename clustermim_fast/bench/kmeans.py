"""`clustermim bench kmeans`: one Lloyd iteration of ours beside the peers that are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from clustermim_fast import ops
from clustermim_fast.bench.lloyd_peers import (
    LLOYD_PEERS,
    Array,
    Fit,
    LloydPeer,
    batches,
    fit_ours,
    minibatch_ours,
    minibatch_sklearn,
)
from clustermim_fast.bench.settings import Settings, Tell, to_stderr
from clustermim_fast.bench.timing import (
    Timing,
    aligned_table,
    interleave,
    machine,
    machine_line,
)

OURS = "ours: KMeans"
OUR_STEP = "ours: ops.lloyd_step alone"
LONG_FIT = 5  # an iteration is (this many - 1 iteration) / (this many - 1)
UNSURE = 2.0  # times that minimum and median of the rounds may differ in that
BATCH_SIZES = (4096, 10_000)
MAX_SECONDS = 20.0
ROUNDS, FILL_SECONDS = 3, 1.0  # a short method gets more rounds, until they take so long together


def measure(
    x: Array,
    c: Array,
    peers: Iterable[LloydPeer],
    *,
    rounds: int,
    minibatch: bool,
    batch_sizes: Iterable[int] = BATCH_SIZES,
    max_seconds: float = MAX_SECONDS,
    fill_seconds: float = 0.0,
    tell: Tell = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """By method: ``ns_per_point`` of an iteration, and ``kind`` "lloyd", "step" or "minibatch".

    Where it is too short to be seen, ``ns_per_point`` is None and ``reason`` says why.

    Args:
        x: float32 [N, D]; c: float32 [K, D], where every fit starts.
        minibatch: also time ``partial_fit``, ours and scikit-learn's, for each of ``batch_sizes``.
    """
    fits = {OURS: fit_ours} | {peer.name: peer.fit for peer in peers}
    calls: dict[str, Callable[[], Any]] = {}
    done: dict[str, int] = {}  # a fit may converge before it has made all its iterations

    def call(key: str, fit: Fit, iterations: int) -> None:
        done[key] = getattr(fit(x, c, iterations), "n_iter_", iterations)

    for name, fit in fits.items():
        for iterations in (1, LONG_FIT):
            key = f"{name} x {iterations}"
            calls[key] = partial(call, key, fit, iterations)
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
    timings = interleave(
        calls, rounds=rounds, max_seconds=max_seconds, fill_seconds=fill_seconds, tell=tell
    )
    result = {}
    for name in fits:
        short, long = f"{name} x 1", f"{name} x {LONG_FIT}"
        more = done[long] - done[short]
        result[name] = _iteration(timings[short], timings[long], more, len(x))
    result[OUR_STEP] = _row("step", timings[OUR_STEP], len(x))
    return result | {key: _row("minibatch", timings[key], rows) for key, rows in seen.items()}


def _minibatch_name(name: str, size: int) -> str:
    full = f"{name}BatchKMeans" if name.startswith("sklearn") else name
    return f"{full}.partial_fit, batches of {size:,}"


def _iteration(short: Timing, long: Timing, more: int, rows: int) -> dict[str, Any]:
    """What each of the ``more`` iterations of the long fit took, or why that is not known."""
    found = {"kind": "lloyd", "rounds": min(len(short.seconds), len(long.seconds))}
    unknown = {"ns_per_point": None, "ns_per_point_median": None}
    if more < 1:
        reason = "the centroids stood still after one iteration; give more rows (n=)"
        return found | unknown | {"reason": reason}
    minimum, median = long.minimum - short.minimum, long.median - short.median
    if min(minimum, median) * UNSURE <= max(minimum, median):
        reason = f"{more} more iterations are lost in the noise of a fit; give more rows (n=)"
        return found | unknown | {"reason": reason}
    scale = 1e9 / rows / more
    return found | {"ns_per_point": minimum * scale, "ns_per_point_median": median * scale}


def _row(kind: str, timing: Timing, rows: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "ns_per_point": timing.minimum / rows * 1e9,
        "ns_per_point_median": timing.median / rows * 1e9,
        "rounds": len(timing.seconds),
    }


def run_kmeans(*, say: Tell = print, tell: Tell = to_stderr, **given: Any) -> dict[str, Any]:
    """Time one Lloyd iteration, float32, beside the peers; print one page.

    The cost of an iteration is what more of them cost, from the same centroids.

    Args:
        say: prints the page; tell: prints what runs now.
        given: fields of :class:`Settings` but ``dtype``; peers are those of :data:`LLOYD_PEERS` and
            "minibatch" (scikit-learn's MiniBatchKMeans.partial_fit).

    Returns what was measured; ValueError for settings that make no sense, naming the remedy.
    """
    settings = Settings(**given)
    chosen, names, notes = settings.choose(LLOYD_PEERS, ("minibatch",))
    x, c, source = settings.read("float32")
    sizes = BATCH_SIZES if "minibatch" in names else ()
    notes += [
        f"left out: mini-batches of {size:,}, more than the {len(x):,} rows; give n={size} or more"
        for size in sizes
        if size > len(x)
    ]
    with settings.limited():
        methods = measure(
            x.numpy(),
            c.numpy(),
            chosen,
            rounds=settings.rounds or ROUNDS,
            minibatch=bool(sizes),
            batch_sizes=[size for size in sizes if size <= len(x)],
            fill_seconds=0.0 if settings.rounds else FILL_SECONDS,
            tell=tell,
        )
        used = torch.get_num_threads()
    notes += [f"n/a: {name}: {m['reason']}" for name, m in methods.items() if "reason" in m]
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
    return settings.publish(result, _page(result), say)


def _page(result: dict[str, Any]) -> str:
    methods = result["methods"]
    ours = methods[OURS]["ns_per_point"]
    table = []
    for name, m in methods.items():
        ns = m["ns_per_point"]
        shown = "n/a" if ns is None else f"{ns:,.1f}"
        ratio = "n/a" if ns is None or ours is None else f"{ns / ours:.2f}"
        table.append((name, shown, ratio, m["rounds"]))
    title = (
        f"kmeans: N = {result['rows']:,}, D = {result['dim']}, "
        f"K = {result['num_centroids']:,}, float32, {result['threads']} threads"
    )
    return "\n".join(
        [
            title,
            f"{result['source']}; minimum of interleaved rounds",
            f"ns a point of a Lloyd iteration: what up to {LONG_FIT} iterations cost more than 1",
            "",
            aligned_table(("method", "ns/point", "x ours", "rounds"), table),
            "",
            *result["notes"],
            f"machine: {machine_line()}",
        ]
    )
