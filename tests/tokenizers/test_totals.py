"""Sums over blocks and ranks: exact where they are integers, at any size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

from clustermim_fast.ranks import ALONE
from clustermim_fast.tokenizers.totals import Totals

QUANTUM = Fraction(1, 2**28)


def parts(count: int):
    """Sums near 2^24 and costs near 2^24, multiples of 2^-28: exact each, not in float64 sums."""
    random = np.random.default_rng(0)
    for _ in range(count):
        units = random.integers(2**51, 2**52, 7).tolist()
        values = torch.tensor([float(unit * QUANTUM) for unit in units], dtype=torch.float64)
        yield units, (values[:6].reshape(3, 2), torch.tensor([1, 2, 3]), values[6])


def added(chosen):
    totals = Totals(torch.zeros(3, 2), exact=True)
    for _, (sums, counts, inertia) in chosen:
        totals.add(sums.clone(), counts, inertia)
    return totals.step(ALONE, None)


def test_exact_sums_do_not_depend_on_the_order_and_are_rounded_once():
    every = list(parts(200))
    whole = [sum(units[i] for units, _ in every) * QUANTUM for i in range(7)]
    for chosen in (every, every[::-1]):
        step = added(chosen)
        assert step.sums.flatten().tolist() == [float(value) for value in whole[:6]]
        assert step.inertia == float(whole[6])
        assert step.counts.tolist() == [200, 400, 600]
    # What the integers are for: float64 additions of the same parts do depend on the order.
    plain = [sum((sums for _, (sums, _, _) in c), torch.zeros(3, 2)) for c in (every, every[::-1])]
    assert not torch.equal(*plain)


def test_floating_sums_are_plain():
    totals = Totals(torch.zeros(1, 1), exact=False)
    for value in (0.1, 0.2, 1e-30):
        part = torch.tensor([[value]], dtype=torch.float64)
        totals.add(part, torch.tensor([1.5]), part.sum())
    step = totals.step(ALONE, None)
    assert step.sums.item() == step.inertia == 0.1 + 0.2 + 1e-30
    assert step.counts.item() == 4.5
