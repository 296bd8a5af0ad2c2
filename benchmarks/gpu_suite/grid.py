"""flash-kmeans' own grid: 2^20 rows of float16, D 64 to 512, K 256 to 16,384."""

from __future__ import annotations

import torch

from benchmarks.gpu_suite.assign import case_of
from benchmarks.gpu_suite.bench import Bench, Ceilings
from benchmarks.gpu_suite.cases import run_case
from benchmarks.gpu_suite.journal import Journal


def run(bench: Bench, journal: Journal) -> None:
    """Normal numbers, as theirs."""
    ceilings, draw = Ceilings(bench), torch.Generator().manual_seed(0)
    n = bench.size(2**20, 16)
    for d in (64, 128, 256, 512) if not bench.rehearsed else (16,):
        x = torch.randn(n, d, generator=draw).to(bench.device, torch.float16)
        for k in (256, 1024, 4096, 16384) if not bench.rehearsed else (5,):
            name = f"grid: {n:,} x {d} fp16, K {k:,}"
            if journal.finished(name):
                continue
            c = torch.randn(k, d, generator=draw).to(bench.device, torch.float16)
            only = ("flash-kmeans", "torch.compile") if k == 1024 else ("flash-kmeans",)
            run_case(bench, journal, case_of(name, x, c, bench, only=only, seconds=0.4), ceilings)
