"""dX of the linear loss on the CPU: an uninitialised tensor, every element of which is written."""

from __future__ import annotations

from typing import Any

import torch

from clustermim_fast.ops import _backend
from clustermim_fast.ops.masked_cross_entropy.cpu import address
from clustermim_fast.ops.masked_linear_cross_entropy.problem import Problem


def token_rows(
    tensor: torch.Tensor, rows: torch.Tensor, num_tokens: int, threads: int
) -> dict[str, Any]:
    """Arguments of the core's gather and scatter for ``rows`` of ``tensor`` [S, L, d]."""
    return {
        "dtype": _backend.DTYPE_CODES[tensor.dtype],
        "sample_stride": tensor.stride(0),
        "row_stride": tensor.stride(1),
        "rows_per_sample": max(tensor.shape[1], 1),
        "dim": tensor.shape[2],
        "rows": rows.data_ptr(),
        "num_rows": rows.numel(),
        "num_tokens": num_tokens,
        "threads": threads,
    }


class GradInput:
    """dX [..., P + L, d], zeros in the prefix; the rest, ``tokens`` [S, L, d], is to be written."""

    def __init__(self, problem: Problem, needed: bool, threads: int) -> None:
        input, prefix, acc = problem.input, problem.prefix, problem.acc
        self.dtype, self.threads = input.dtype, threads
        self.num_tokens = problem.target.numel()
        # Beside a float64 weight a narrower input's gradient is rounded at the end.
        dtype = acc if acc == torch.float64 else input.dtype
        self.out = torch.empty(input.shape if needed else (0,), dtype=dtype)
        if needed:
            view = self.out.view(input.shape[:-2].numel(), *input.shape[-2:])
            view[:, :prefix].zero_()
            self.tokens = view[:, prefix:]

    def write(self, rows: torch.Tensor, source: torch.Tensor | None) -> None:
        """rows = round(source), zeros without a source."""
        _backend.core().scatter_token_rows(
            source=address(source),
            destination=self.tokens.data_ptr(),
            **token_rows(self.tokens, rows, self.num_tokens, self.threads),
        )

    def finish(self) -> torch.Tensor:
        return self.out.to(self.dtype)
