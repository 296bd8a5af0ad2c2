"""Rows that make certainty dear: every centroid at one distance, a far offset, an outlier."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.assignment import methods
from benchmarks.assignment.sections import FP32_ISAS
from benchmarks.harness import interleave, say
from benchmarks.workloads import WORKLOADS, Store
from clustermim_fast import ops
from tests.ops.truth import nearest_ids

WORKLOAD_NAMES = ("inet1000", "cifar512")
MOST_ROWS, PROBE_ROWS, TARGET_SECONDS = 16_384, 32, 1.0
CHECKED_ROWS = 512


def worst_data(x: torch.Tensor, c: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name -> rows and centroids, of the same shapes as those given."""
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(c.shape[1], generator=generator) for _ in range(len(c))])
    outlier = c.clone()
    outlier[len(c) // 2] *= 1e4
    return {
        # A row of one value is as far from every permutation of one centroid, exactly.
        "every centroid equally far": (x[:, :1].expand_as(x).contiguous(), c[0][order]),
        "offset 1e5": (x + 1e5, c + 1e5),
        "one centroid 1e4 times the rest": (x, outlier),
    }


def worst_rows(store: Store, options: Any) -> list[dict[str, Any]]:
    """ns a row of ours on each, beside the fp32 path on the same and on ordinary rows."""
    fp32 = [isa for isa in methods.usable_isas() if isa in FP32_ISAS][-1]
    table = []
    for name in WORKLOAD_NAMES:
        data = store.load(WORKLOADS[name]).some(2000)
        step = max(1, len(data.x) // MOST_ROWS)
        x, c = data.x[::step][:MOST_ROWS].contiguous(), data.centroids
        for case, (rows, centroids) in worst_data(x, c).items():
            n = _affordable(rows, centroids, fp32)
            given, ordinary = (rows[:n], centroids), (x[:n], c)
            calls: dict[str, Callable[[], Any]] = {
                "ours": partial(ops.nearest_centroid, *given),
                "fp32": methods.forced(fp32, partial(ops.nearest_centroid, *given)),
                "ours ordinary": partial(ops.nearest_centroid, *ordinary),
                "fp32 ordinary": methods.forced(fp32, partial(ops.nearest_centroid, *ordinary)),
            }
            timings = interleave(calls, rounds=3, max_seconds=3.0)
            seen = min(n, CHECKED_ROWS)
            ids = ops.nearest_centroid(*given)[:seen].numpy()
            truth = 0 if "equally" in case else nearest_ids(rows[:seen], centroids, "euclidean")
            line: dict[str, Any] = {
                "section": "worst", "workload": name, "case": case, "rows": n, "fp32_path": fp32,
                **{f"{method} ns": t.minimum / n * 1e9 for method, t in timings.items()},
                "wrong_ids": int((ids != truth).sum()), "checked": seen,
                "rescored": methods.rescored_shares(calls["ours"]),
            }  # fmt: skip
            line["to_fp32"] = line["ours ns"] / line["fp32 ns"]
            line["to_fp32_ordinary"] = line["ours ns"] / line["fp32 ordinary ns"]
            say(
                f"  {name}, {case}: {line['ours ns']:,.0f} ns/row, {line['to_fp32_ordinary']:.2f} "
                f"times {fp32} on ordinary rows, wrong {line['wrong_ids']} of {seen}"
            )
            table.append(line)
    return table


def _affordable(rows: torch.Tensor, centroids: torch.Tensor, fp32: str) -> int:
    """Rows that the slower of both paths does in about TARGET_SECONDS."""
    slowest = 0.0
    for isa in ("auto", fp32):
        call = methods.forced(isa, partial(ops.nearest_centroid, rows[:PROBE_ROWS], centroids))
        start = time.perf_counter()
        call()
        slowest = max(slowest, time.perf_counter() - start)
    affordable = int(TARGET_SECONDS / slowest * PROBE_ROWS)
    return max(PROBE_ROWS, min(len(rows), affordable))
