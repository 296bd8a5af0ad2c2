"""The shapes of the loss benchmark, their tensors, and the truth in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

TOKENS = 196
BATCHES = {50: 64, 100: 64, 1000: 32, 8192: 8}  # samples, by classes: tenths of a second a step
DIMS = (192, 384, 512, 768)
DTYPES = (torch.float32, torch.bfloat16)
MASKED = (147, 78)  # of 196 tokens: 75 and 40 %


@dataclass(frozen=True)
class Case:
    """``batch`` samples of 196 tokens behind one [cls], ``masked`` of them counted."""

    classes: int
    dim: int
    batch: int
    masked: int
    dtype: torch.dtype
    label_smoothing: float = 0.0

    @property
    def name(self) -> str:
        """As the tables and ``--cases`` show it."""
        dtype = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        share = round(100 * self.masked / TOKENS)
        smoothing = f" e={self.label_smoothing}" if self.label_smoothing else ""
        return f"K={self.classes} d={self.dim} {dtype} {share}%{smoothing}"

    @property
    def rows(self) -> int:
        """Counted tokens."""
        return self.batch * self.masked

    @property
    def gradient_bytes(self) -> int:
        """Of dX, dW and db."""
        numbers = self.batch * (TOKENS + 1) * self.dim + self.classes * (self.dim + 1)
        return numbers * self.dtype.itemsize

    def tensors(self) -> dict[str, Any]:
        """x, w, b, target and mask; ``listed``, the counted tokens of x without [cls]."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        order = torch.rand(self.batch, TOKENS, generator=generator).argsort(1)
        mask = order < self.masked
        return {
            "x": normal(self.batch, TOKENS + 1, self.dim).to(self.dtype),
            "w": (normal(self.classes, self.dim) * self.dim**-0.5).to(self.dtype),
            "b": (normal(self.classes) * 0.1).to(self.dtype),
            "target": torch.randint(0, self.classes, (self.batch, TOKENS), generator=generator),
            "mask": mask,
            "label_smoothing": self.label_smoothing,
        }

    @torch.no_grad()
    def truth(self, tensors: dict[str, Any]) -> list[torch.Tensor]:
        """Loss and gradients of x, w, b in float64, for a grad_output of 1, some rows at a time."""
        mask, e = tensors["mask"], self.label_smoothing
        w, b = tensors["w"].double(), tensors["b"].double()
        x, target = tensors["x"][:, 1:][mask], tensors["target"][mask]
        loss, dx = torch.zeros((), dtype=torch.float64), []
        dw, db = torch.zeros_like(w), torch.zeros_like(b)
        for begin in range(0, len(x), 2048):
            inputs = x[begin : begin + 2048].double()
            log_p = (inputs @ w.T + b).log_softmax(1)
            soft = torch.full_like(log_p, e / self.classes)
            soft[torch.arange(len(soft)), target[begin : begin + 2048]] += 1 - e
            loss -= (soft * log_p).sum()
            dz = (log_p.exp() - soft) / len(x)
            dx.append(dz @ w)
            dw += dz.T @ inputs
            db += dz.sum(0)
        whole = torch.zeros(tensors["x"].shape, dtype=torch.float64)
        whole[:, 1:][mask] = torch.cat(dx)
        return [loss / len(x), whole, dw, db]


def all_cases() -> Iterator[Case]:
    """Every combination, the quick ones first."""
    for classes, batch in BATCHES.items():
        for dim in DIMS:
            for masked in MASKED:
                for dtype in DTYPES:
                    yield Case(classes, dim, batch, masked, dtype)


def chosen(patterns: list[str]) -> list[Case]:
    """The cases whose names hold every word of one of the patterns; all without any."""
    cases = list(all_cases())
    if not patterns:
        return cases
    found = [
        case for case in cases
        if any(set(pattern.split()) <= set(case.name.split()) for pattern in patterns)
    ]  # fmt: skip
    if not found:
        raise SystemExit(f"no case is named like {patterns}; the first is {cases[0].name!r}")
    return found
