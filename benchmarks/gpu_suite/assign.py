"""Assignment: the issue's shapes, the worst rows there can be, images in place, and Lloyd steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite import images as pictures
from benchmarks.gpu_suite.assign_peers import peers
from benchmarks.gpu_suite.bench import Bench, Ceilings
from benchmarks.gpu_suite.cases import Case, Method, run_case
from benchmarks.gpu_suite.journal import Journal
from benchmarks.gpu_suite.uncertified import filter_alone
from clustermim_fast import ops

CHECKED = 2**16  # rows that are held against the CPU's exact answer


def checker(x: torch.Tensor, c: torch.Tensor) -> Callable[[Any], dict[str, Any]]:
    """Counts wrong ids on rows evenly spread, the CPU core's exact ids being the truth."""
    chosen = torch.arange(0, len(x), max(1, len(x) // CHECKED), device=x.device)
    truth = ops.nearest_centroid(x[chosen].cpu(), c.cpu())

    def check(ids: torch.Tensor) -> dict[str, Any]:
        wrong = int((ids[chosen.to(ids.device)].cpu().long() != truth).sum())
        return {"wrong_ids": wrong, "checked_rows": len(chosen)}

    return check


def shares(call: Callable[[], Any]) -> dict[str, Any]:
    """Of all rows, in percent: those that the filter left open, and those beyond float64."""
    with ops.record_stats():
        call()
    stats = ops.assignment_stats()
    rows = max(1, stats.rows)
    return {
        "undecided_percent": 100 * (stats.float32 + stats.float64 + stats.exact) / rows,
        "exact_percent": 100 * stats.exact / rows,
    }


def case_of(
    name: str, x: torch.Tensor, c: torch.Tensor, bench: Bench, goal: float | None = None,
    floor: float | None = None, only: Any = None, seconds: float = 2.0,
) -> Case:  # fmt: skip
    """Rows and centroids of one dtype; the uncertified time is a method of its own."""
    ours, cuda = (partial(ops.nearest_centroid, x, c, backend=name) for name in ("triton", "cuda"))
    missing = hopper.missing(bench)
    n, d, k = len(x), x.shape[1], len(c)
    methods = [
        Method("ours", lambda: ours),
        Method("ours, filter alone", lambda: filter_alone(x, c)),
        Method(hopper.OURS, lambda: cuda, missing),
        Method(f"{hopper.OURS}, filter alone", lambda: filter_alone(x, c, hopper=True), missing),
        *peers(x, c, only),
    ]
    return Case(
        name, methods, moved=(n + k) * d * x.element_size() + 8 * n, flops=2 * n * d * k,
        check=checker(x, c), goal_ms=goal, paper_floor_ms=floor, facts=shares,
        seconds=seconds,
    )  # fmt: skip


def all_equidistant(bench: Bench, ceilings: Ceilings, journal: Journal) -> None:
    """Every centroid a permutation of one, every row of one value: nothing but exact ties."""
    n, d, k = bench.size(2**14, 8), bench.size(384, 16), bench.size(1000, 7)
    draw = torch.Generator().manual_seed(0)
    value = torch.randn(d, generator=draw)
    c = torch.stack([value[torch.randperm(d, generator=draw)] for _ in range(k)])
    x = torch.randn(n, 1, generator=draw).expand(n, d).contiguous()
    x, c = x.to(bench.device), c.to(bench.device)
    for rows in (n // 16 or 1, n):  # the few first: what a worst case costs is not known yet
        name = f"all equidistant: {rows:,} x {d} fp32, K {k}"
        run_case(
            bench, journal, case_of(name, x[:rows], c, bench, only=("torch, eager",)), ceilings
        )


def run(bench: Bench, journal: Journal) -> None:
    ceilings, device = Ceilings(bench), bench.device
    many = bench.size(5102, 2)
    half = torch.bfloat16

    def done(name: str) -> bool:
        return journal.finished(name)

    photographs = pictures.load(bench, "photographs", many)
    if bench.rehearsed:
        photographs = photographs[:1, :, :64, :64]
    x = pictures.rows(photographs, 16, device, torch.float32)
    k = bench.size(100, 5)
    case = case_of(f"1M x 768 fp32, K {k}", x, pictures.centroids(x, k), bench, 0.85, 0.72)
    run_case(bench, journal, case, ceilings)
    name = f"1M x 384 bf16, K {bench.size(1000, 7)}"
    if not done(name):
        f = pictures.features(x, bench.size(384, 32)).to(half)
        c = pictures.centroids(f, bench.size(1000, 7)).to(half)
        run_case(bench, journal, case_of(name, f, c, bench, 1.2, 0.97), ceilings)
        del f, c, case
    name = f"1M x 768 bf16, K {bench.size(8192, 9)}"
    if not done(name):
        c = pictures.centroids(x, bench.size(8192, 9), iterations=1).to(half)
        run_case(bench, journal, case_of(name, x.to(half), c, bench, 19.0, 15.9), ceilings)
        del c
    del x
    name = f"12.8M x 48 bf16, K {bench.size(512, 6)}"
    if not done(name):
        small = pictures.load(bench, "cifar", bench.size(200_000, 2))
        x = pictures.rows(small, 4, device, half)
        c = pictures.centroids(x, bench.size(512, 6)).to(half)
        run_case(bench, journal, case_of(name, x, c, bench, 1.3, 0.86), ceilings)
        del x
    all_equidistant(bench, ceilings, journal)
