"""One Lloyd iteration of ours beside scikit-learn's, its Intel build's and faiss's, real patches.

    python -m benchmarks.ops.bench_kmeans --data ../shared/data [--json FILE]

Every fit starts at the same centroids; an iteration costs a quarter of what five cost more than
one. Beside it `ops.lloyd_step` alone, and scikit-learn's MiniBatchKMeans.partial_fit a point.

    pytest benchmarks/ops/bench_kmeans.py --benchmark-enable

times ours on small made-up rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cache
from benchmarks.harness import limited_threads, machine, markdown_table, say, write_json
from benchmarks.workloads import WORKLOADS, Store
from clustermim_fast import ops
from clustermim_fast.bench.kmeans import OUR_STEP, OURS, measure
from clustermim_fast.bench.lloyd_peers import LLOYD_PEERS

NAMES = ("inet100", "inet1000", "cifar50", "cifar512")
# Ratio to the best Lloyd peer, and to MiniBatchKMeans.partial_fit a point; two threads.
GOALS = {
    "inet100": (3.3, 12.0),
    "inet1000": (8.4, 20.0),
    "cifar50": (6.0, 15.0),
    "cifar512": (8.0, 25.0),
}


def _least(lines: Iterable[dict[str, Any]]) -> float | None:
    """ns/point of the fastest; None where none could be measured."""
    known = [line["ns_per_point"] for line in lines if line["ns_per_point"] is not None]
    return min(known, default=None)


def _shown(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def run_workload(name: str, store: Store, options: argparse.Namespace) -> dict[str, Any]:
    data = store.load(WORKLOADS[name]).some(WORKLOADS[name].timed_images)
    peers = []
    for peer in LLOYD_PEERS:
        if peer.missing():
            say(f"NOT INSTALLED, so not compared: {peer.name}")
        else:
            peers.append(peer)
    generator = torch.Generator().manual_seed(0)  # from rows: an iteration then moves many
    k = len(data.centroids)
    start = data.x[torch.randperm(len(data.x), generator=generator)[:k]]
    found = measure(
        data.x.numpy(), start.numpy(), peers,
        rounds=options.rounds, minibatch=True, max_seconds=options.max_seconds,
    )  # fmt: skip
    best = _least(found[peer.name] for peer in peers)
    partial = _least(m for n, m in found.items() if n.startswith("sklearn Mini"))
    for method, line in found.items():
        ns = line["ns_per_point"]
        line["x_best_lloyd_peer"] = best / ns if best and ns else None
        line["x_minibatch"] = partial / ns if partial and ns else None
        say(f"  {method:<55} {_shown(ns, ',.1f'):>10} ns/point")
    return {
        "workload": name, "rows": len(data.x), "dim": data.x.shape[1], "num_centroids": k,
        "threads": torch.get_num_threads(), "methods": found,
    }  # fmt: skip


def speed_table(results: list[dict[str, Any]]) -> str:
    header = (
        "workload", "method", "ns/point min", "from medians", "x best Lloyd peer",
        "x sklearn MiniBatch", "rounds",
    )  # fmt: skip
    lines = [
        (
            f"{r['workload']} (N={r['rows']:,}, D={r['dim']}, K={r['num_centroids']})",
            f"**{name}**" if name.startswith("ours") else name,
            _shown(m["ns_per_point"], ",.1f"),
            _shown(m["ns_per_point_median"], ",.1f"),
            _shown(m["x_best_lloyd_peer"], ".2f"),
            _shown(m["x_minibatch"], ".2f"),
            m["rounds"],
        )
        for r in results
        for name, m in r["methods"].items()
    ]
    return markdown_table(header, lines)


def goal_table(results: list[dict[str, Any]]) -> str:
    lines = []
    for r in results:
        lloyd_goal, minibatch_goal = GOALS[r["workload"]]
        for method in (OURS, OUR_STEP):
            m = r["methods"][method]
            lloyd, minibatch = m["x_best_lloyd_peer"], m["x_minibatch"]
            reached = [
                "n/a" if ratio is None else "yes" if ratio >= goal else "NO"
                for ratio, goal in ((lloyd, lloyd_goal), (minibatch, minibatch_goal))
            ]
            lines.append(
                (r["workload"], method, _shown(lloyd, ".2f"), lloyd_goal, reached[0],
                 _shown(minibatch, ".2f"), minibatch_goal, reached[1])
            )  # fmt: skip
    header = (
        "workload", "method", "x best Lloyd peer", "goal", "reached", "x MiniBatch", "goal",
        "reached",
    )  # fmt: skip
    return markdown_table(header, lines)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the image archives")
    parser.add_argument("--cache", type=Path, default=cache.DEFAULT, help="default %(default)s")
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, help="use only this many images of each archive")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=10.0, help="of one method")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    store = Store(options.data, options.cache, options.images)
    with limited_threads(options.threads):
        results = [run_workload(name, store, options) for name in options.workloads]
    print(speed_table(results), "\n")
    print(goal_table(results), "\n")
    print(machine(), f"threads {options.threads}")
    if options.json:
        write_json(options.json, results)


@pytest.mark.parametrize(("n", "d", "k"), [(20_000, 48, 50), (5_000, 48, 512), (2_000, 768, 100)])
def test_lloyd_step_speed(benchmark, n, d, k):
    benchmark(ops.lloyd_step, torch.randn(n, d), torch.randn(k, d))


@pytest.mark.parametrize(("n", "d", "k"), [(20_000, 48, 50), (2_000, 768, 100)])
def test_kmeans_speed(benchmark, n, d, k):
    from clustermim_fast import KMeans

    x = torch.randn(n, d)
    benchmark(lambda: KMeans(k, init=x[:k], n_init=1, max_iter=5, tol=0).fit(x))


if __name__ == "__main__":
    main()
