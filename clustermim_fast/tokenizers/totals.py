"""What passes over blocks, batches and ranks add up to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clustermim_fast.ops.lloyd_step.reference import IMAGE_QUANTUM
from clustermim_fast.tokenizers.ranks import Alone

INERTIA_UNIT = 2.0**-60


@dataclass(frozen=True)
class Step:
    """One pass over rows: ids (None where they are not kept), sums, counts, inertia."""

    ids: torch.Tensor | None
    sums: torch.Tensor
    counts: torch.Tensor
    inertia: float


class Totals:
    """Sums [K, D], counts [K] and inertia, part by part.

    ``exact``: the sums added are multiples of 2^-28 (those of ``ops.lloyd_step_images``); they are
    kept as integers, so that the result is the same for any parts in any order. Inertia, too, is
    then added without rounding.
    """

    def __init__(self, centers: torch.Tensor, exact: bool) -> None:
        self.exact = exact
        dtype = torch.int64 if exact else torch.float64
        self._sums = torch.zeros(centers.shape, dtype=dtype, device=centers.device)
        self._counts = torch.zeros(len(centers), dtype=torch.float64, device=centers.device)
        self._inertia: float = 0

    def add(self, sums: torch.Tensor, counts: torch.Tensor, inertia: torch.Tensor) -> None:
        """Add what a call of ``ops.lloyd_step(_images)`` returned; ``sums`` is overwritten."""
        if self.exact:
            self._sums += sums.div_(IMAGE_QUANTUM).round_().long()
            self._inertia += int(float(inertia) / INERTIA_UNIT)  # a Python int: of any size
        else:
            self._sums += sums
            self._inertia += float(inertia)
        self._counts += counts

    def step(self, group: Alone, ids: torch.Tensor | None) -> Step:
        """Everything added on all ranks of ``group``, beside this rank's ``ids``."""
        sums, counts = group.total(self._sums), group.total(self._counts)
        if not self.exact:
            inertia = float(group.each(np.array([self._inertia], dtype=np.float64)).sum())
            return Step(ids, sums, counts, inertia)
        halves = np.array(divmod(int(self._inertia), 2**48), dtype=np.int64)
        high, low = (int(v) for v in group.each(halves).sum(axis=0))
        # A quotient of Python ints is rounded once.
        inertia = (high * 2**48 + low) / int(1 / INERTIA_UNIT)
        return Step(ids, sums.double().mul_(IMAGE_QUANTUM), counts, inertia)
