"""What the strict interpreter remembers of a launch: who stored which byte since which barrier.

A program stands for many threads, and which of them loads or stores an element is the compiler's
choice. One thing is taken for granted: operations on the same block of addresses, in the same
order, give an element to the same thread, unless the block is loaded as an operand of a product.
Else what one thread stored and another loads, in whichever order, needs a barrier between.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SEVERAL = 0  # in place of a block: loaded by several threads


class KernelMemoryError(Exception):
    pass


class _Extent:
    """For each byte of an argument the program (from 1) that stored it last, the number of barriers
    before its last store and (an element's first byte) its last load, and the block of each."""

    def __init__(self, size: int) -> None:
        # Zeros take no memory until they are written to.
        self.owner, self.stored, self.loaded = (np.zeros(size, np.int32) for _ in range(3))
        self.stored_as, self.loaded_as = (np.zeros(size, np.int64) for _ in range(2))
        self.is_stored = False


class Races:
    """Plain loads and stores of one launch; atomics are not looked at."""

    def __init__(self) -> None:
        self.extents: dict[int, _Extent] = {}
        self.program = 0
        self.barriers = 1

    def barrier(self) -> None:
        """All threads of the running program have come here; or another program runs now."""
        self.barriers += 1

    def touch(
        self, what: str, extent: int, length: int, offset: Any, size: int, block: int
    ) -> None:
        """``what`` ("load" or "store") of ``size`` bytes at each offset of an argument."""
        if extent not in self.extents:
            self.extents[extent] = _Extent(length)
        seen = self.extents[extent]
        if seen.is_stored:
            owner = seen.owner[offset]
            other = (owner != 0) & (owner != self.program + 1)
            if other.any():
                raise KernelMemoryError(
                    f"{what} by program {self.program} of bytes stored by program "
                    f"{int(owner[other][0]) - 1}: a race"
                )
            fresh = (seen.stored[offset] == self.barriers) & (seen.stored_as[offset] != block)
            self._refuse(fresh, what, "stored")
        if what == "load":
            other = (seen.loaded[offset] == self.barriers) & (seen.loaded_as[offset] != block)
            seen.loaded_as[offset] = np.where(other, _SEVERAL, block)
            seen.loaded[offset] = self.barriers
            return
        seen.is_stored = True
        for byte in range(size):
            at = offset + byte
            other = (seen.loaded[at] == self.barriers) & (seen.loaded_as[at] != block)
            self._refuse(other, what, "loaded")
            seen.owner[at] = self.program + 1
            seen.stored[at], seen.stored_as[at] = self.barriers, block

    def multiply(self, extent: int, offset: Any) -> None:
        """What was loaded from here is an operand of a product: any thread may have got it."""
        seen = self.extents[extent]
        self._refuse(seen.stored[offset] == self.barriers, "load", "stored")
        seen.loaded_as[offset] = _SEVERAL

    def _refuse(self, found: Any, what: str, before: str) -> None:
        if found.any():
            raise KernelMemoryError(
                f"missing barrier: {what} by program {self.program} of what its other threads "
                f"{before} since the last tl.debug_barrier"
            )
