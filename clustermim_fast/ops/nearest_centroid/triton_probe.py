"""Is what docs/certificate.md's (13) assumes of tensor cores true of this device?"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clustermim_fast.ops import _triton
from clustermim_fast.ops.nearest_centroid.triton_sizes import accumulation_of

D = 1024
N = 64


@triton.jit
def _products_kernel(x, c, out, D, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        left = tl.load(x + lanes[:, None] * D + ds[None, :])
        right = tl.load(c + lanes[:, None] * D + ds[None, :])
        total = tl.dot(left, tl.trans(right), total)
    tl.store(out + lanes[:, None] * BLOCK + lanes[None, :], total)


def hard_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """float16 [N, D] twice: one product of 1, the others so small beside it that an accumulator
    loses part or all of each, all of one sign, or of both; operands down to the least subnormal.
    In half of the rows the others are all just below a power of two.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.empty(N, D, dtype=torch.float64)
    c = torch.empty(N, D, dtype=torch.float64)
    for i in range(N):
        low, spread = i % 16, i // 16 % 2  # products of about 2^-(20 + low)
        x[i] = 2.0 ** -(10 + low // 2) * (1 + spread * torch.rand(D, generator=draw))
        c[i] = 2.0 ** -(10 + (low + 1) // 2) * (1.99 - 0.09 * torch.rand(D, generator=draw))
        if i >= N // 2:
            x[i] *= torch.randint(0, 2, (D,), generator=draw) * 2 - 1
        at = (0, 5, D // 2, D - 1)[i // 16]
        x[i, at] = c[i, at] = 1.0
    x[3], c[3] = 2.0**-24, 1.0  # subnormal
    x[3, 0] = 1.0
    return x.half(), c.half()


def worst_product(device: torch.device, arch: str) -> float:
    """The largest error of a product, as a part of what (13) allows; above 1 it does not hold."""
    x, c = hard_rows()
    out = torch.empty(N, N, dtype=torch.float32, device=device)
    x, c = x.to(device), c.to(device)
    with _triton.launching_on(out):
        _products_kernel[(1,)](x, c, out, D, BLOCK=N, BLOCK_D=64, enable_fp_fusion=True)
    x64, c64 = x.double(), c.double()
    error = (out.double() - x64 @ c64.T).abs()
    allowed = accumulation_of(arch) * (D + 16) * 2.0**-24 * (x64.abs() @ c64.abs().T)
    return float((error / allowed).max())
