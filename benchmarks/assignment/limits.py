"""What the machine can do, as far as plain torch can show it: reading memory, and matrix products.

``torch.mm`` is the practical limit that a library reaches; a register loop of the same
instructions reaches more (fp32 by a quarter, bf16 on AMX by a factor of two or so), so a share
above 100 % of it is possible. Inputs are random: zeros flatter matrix units by 15-20 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.harness import interleave

MEMORY_BYTES = 2**30
SHAPES = ((4096, 768, 1024), (2048, 2048, 2048))  # rows, depth, columns


@dataclass(frozen=True)
class Limits:
    """Measured: GB/s of reading memory; GFLOP/s of the fastest product, fp32 and bf16."""

    read_gb_s: float
    fp32_gflop_s: float
    bf16_gflop_s: float

    def ns_per_row(self, bytes_per_row: int, dim: int, num_centroids: int, bf16: bool) -> float:
        """The longer of reading a row once and of its products."""
        gflop_s = max(self.bf16_gflop_s if bf16 else 0.0, self.fp32_gflop_s)
        return max(bytes_per_row / self.read_gb_s, 2 * dim * num_centroids / gflop_s)


def measure_limits(rounds: int) -> Limits:
    """With the threads that torch has now."""
    memory = torch.ones(MEMORY_BYTES // 8, dtype=torch.float64)
    calls = {"read": memory.sum}
    for n, d, k in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            a, b = torch.randn(n, d).to(dtype), torch.randn(d, k).to(dtype)
            out = torch.empty(n, k, dtype=dtype)
            calls[f"{dtype} {n} {d} {k}"] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)
    timings = interleave(calls, rounds=rounds)

    def fastest(dtype: torch.dtype) -> float:
        return max(2e-9 * n * d * k / timings[f"{dtype} {n} {d} {k}"].minimum for n, d, k in SHAPES)

    read = MEMORY_BYTES / timings["read"].minimum * 1e-9
    return Limits(read, fastest(torch.float32), fastest(torch.bfloat16))
