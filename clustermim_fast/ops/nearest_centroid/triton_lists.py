"""What the assignment's tiers hand on to one another: lists of rows, which count on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

SLOTS = tl.constexpr(8)  # candidates that are written down of a row; one with more has them all
NO_CENTROID = tl.constexpr(2**31 - 1)
# Places in `counters`: rows that the filter left open, those of them with more candidates than
# slots, rows that float64 left open, rows with NaN or Inf.
OPEN = tl.constexpr(0)
MANY = tl.constexpr(1)
EXACT = tl.constexpr(2)
INVALID = tl.constexpr(3)
NUM_COUNTERS = 4

# Places in `facts`.
R_NEAR = tl.constexpr(0)  # largest |c' - cr| of the near centroids, and of all
R_ALL = tl.constexpr(1)
C_NEAR = tl.constexpr(2)  # largest |cr|
C_ALL = tl.constexpr(3)
FAR = tl.constexpr(4)  # smallest of the far centroids' |c'| and |cr|, inf where none is far
NUM_FACTS = tl.constexpr(5)


@dataclass(frozen=True)
class Lists:
    """Three lists with room for every row of a launch.

    open_*: what the filter left open, with the lowest score of a candidate; found: how many
    candidates a row of it has, which stand in slots (-1: it has NaN or Inf). many: rows with more
    than fit. exact_*: what float64 left open, with the upper bound of its score and the candidates
    left (the others NO_CENTROID; a negative one: all).
    """

    counters: torch.Tensor
    open_rows: torch.Tensor
    open_limits: torch.Tensor
    found: torch.Tensor
    slots: torch.Tensor
    many: torch.Tensor
    exact_rows: torch.Tensor
    exact_upper: torch.Tensor
    exact_slots: torch.Tensor

    @classmethod
    def of(cls, counters: torch.Tensor, n: int) -> Lists:
        """Room for ``n`` rows; ``counters``: int32 [NUM_COUNTERS], zeros."""

        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return counters.new_empty(shape, dtype=dtype)

        return cls(
            counters=counters,
            open_rows=empty(n),
            open_limits=empty(n, dtype=torch.float32),
            found=empty(n),
            slots=empty(n, SLOTS.value),
            many=empty(n),
            exact_rows=empty(n),
            exact_upper=empty(n, dtype=torch.float64),
            exact_slots=empty(n, SLOTS.value),
        )


@triton.jit
def append(counter, chosen):
    """Places in a list for the chosen of some rows; advances its counter.

    The order of a list depends on which program comes first; what is done with its rows does not.
    """
    number = chosen.to(tl.int32)
    # A sum over a second axis: triton 3.6 compiles no product for Blackwell whose scores reach a
    # reduction of one axis outside a loop.
    total = tl.reshape(tl.sum(tl.reshape(number, [1, number.shape[0]]), 1), [])
    first = total
    if total > 0:
        first = tl.atomic_add(counter, total, sem="relaxed")
    return first + tl.cumsum(number, 0) - number
