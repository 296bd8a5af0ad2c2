"""What passes over blocks, batches and ranks add up to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from clustermim_fast.ops.lloyd_step.reference import IMAGE_QUANTUM
from clustermim_fast.ranks import Alone

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
        self._shape, self._device = centers.shape, centers.device
        self._only: Step | None = None  # a single part, as it came
        self._sums: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None
        self._inertia: float = 0

    def add(self, sums: torch.Tensor, counts: torch.Tensor, inertia: torch.Tensor) -> None:
        """Add what a call of ``ops.lloyd_step(_images)`` returned; ``sums`` is taken over."""
        part = Step(None, sums, counts.double(), float(inertia))
        if self._only is None and self._sums is None:
            self._only = part
            return
        self._add_up()
        self._add(part)

    def _add(self, part: Step) -> None:
        sums = part.sums
        if self.exact:
            sums = sums.div_(IMAGE_QUANTUM).round_().long()
            self._inertia += int(part.inertia / INERTIA_UNIT)  # a Python int: of any size
        else:
            self._inertia += part.inertia
        self._sums = sums if self._sums is None else self._sums.add_(sums)
        self._counts = part.counts if self._counts is None else self._counts.add_(part.counts)

    def _add_up(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums and counts of all parts so far."""
        if self._only is not None:
            part, self._only = self._only, None
            self._add(part)
        if self._sums is None or self._counts is None:
            dtype = torch.int64 if self.exact else torch.float64
            self._sums = torch.zeros(self._shape, dtype=dtype, device=self._device)
            self._counts = torch.zeros(self._shape[0], dtype=torch.float64, device=self._device)
        return self._sums, self._counts

    def step(self, group: Alone, ids: torch.Tensor | None) -> Step:
        """Everything added on all ranks of ``group``, beside this rank's ``ids``."""
        if self._only is not None and group.count == 1:
            return replace(self._only, ids=ids)
        sums, counts = (group.total(total) for total in self._add_up())
        if not self.exact:
            inertia = float(group.each(np.array([self._inertia], dtype=np.float64)).sum())
            return Step(ids, sums, counts, inertia)
        halves = np.array(divmod(int(self._inertia), 2**48), dtype=np.int64)
        high, low = (int(v) for v in group.each(halves).sum(axis=0))
        # A quotient of Python ints is rounded once.
        inertia = (high * 2**48 + low) / int(1 / INERTIA_UNIT)
        return Step(ids, sums.double().mul_(IMAGE_QUANTUM), counts, inertia)
