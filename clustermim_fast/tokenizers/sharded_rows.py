"""Rows that are spread over the ranks of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from clustermim_fast.ranks import Alone, everyone
from clustermim_fast.tokenizers.rows import Float64, Index, Rows


class ShardedRows(Rows):
    """The ``local`` rows of every rank: rank 0's first, then rank 1's, and so on.

    Args:
        numbers: ascending numbers of the local rows among all ``num_rows``, where they do not
            follow one another rank by rank.
    """

    def __init__(
        self,
        local: Rows,
        group: Alone,
        numbers: Index | None = None,
        num_rows: int | None = None,
    ) -> None:
        self._local, self.group = local, group
        self.dim, self.metric, self.dtype = local.dim, local.metric, local.dtype
        self.device, self.weights, self.exact = local.device, local.weights, local.exact
        if numbers is None or num_rows is None:
            sizes = group.each(np.array([local.num_rows]))[:, 0]
            self._first = int(sizes[: group.rank].sum())
            self.num_rows, self._numbers = int(sizes.sum()), None
        else:
            self._first, self._numbers, self.num_rows = 0, numbers, num_rows

    @property
    def local(self) -> Rows:
        """This rank's rows."""
        return self._local

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Of the local rows."""
        return self._local.blocks()

    def number(self, index: Index) -> Index:
        """From places among the local rows to numbers among all."""
        return index + self._first if self._numbers is None else self._numbers[index]

    def _find(self, number: Index) -> tuple[Index, Index]:
        """Positions in ``number`` of the rows held here, and their places among the local ones."""
        if self._numbers is None:
            place = number - self._first
            here = (place >= 0) & (place < self._local.num_rows)
        else:
            place = np.searchsorted(self._numbers, number).astype(np.int64)
            known = np.append(self._numbers, -1)
            here = known[place] == number
        return np.flatnonzero(here), place[here]

    def take(self, index: Index) -> torch.Tensor:
        """The rows with these numbers, the same on every rank."""
        here, place = self._find(index)
        rows = torch.zeros(len(index), self.dim, dtype=self.dtype, device=self.device)
        rows[torch.from_numpy(here).to(self.device)] = self._local.take(place)
        return self.group.fill(rows)

    def weights_at(self, index: Index) -> Float64:
        """Of the rows with these numbers."""
        if self.weights is None:
            return np.ones(len(index))
        here, place = self._find(index)
        weights = np.zeros(len(index))
        weights[here] = self._local.weights_at(place)
        return self.group.fill(torch.from_numpy(weights)).numpy()

    def subset(self, index: Index) -> ShardedRows:
        """The rows with these numbers, row j the one numbered ``index[j]``."""
        here, place = self._find(index)
        return ShardedRows(self._local.subset(place), self.group, here, len(index))

    def unweighted(self) -> ShardedRows:
        """Each row of weight 1."""
        return ShardedRows(self._local.unweighted(), self.group, self._numbers, self.num_rows)


def spread(local: Rows, what: str) -> Rows:
    """``local`` as this rank's part of all rows; itself where there is one process.

    ``what`` names the rows in the error for ranks that hold rows of different kinds.
    """
    group = everyone()
    if group.count == 1:
        return local
    kind = {
        "features": local.dim,
        "dtype": local.dtype,
        "weights": local.weights is not None,
        "exact sums": local.exact,
    }
    group.require_equal(what, kind)
    return ShardedRows(local, group)


def side_by_side(batches: Iterator[Rows], empty: Callable[[], Rows], what: str) -> Iterator[Rows]:
    """The ranks' batches, one of each at a time; a rank with no more takes part with no rows."""
    group = everyone()
    if group.count == 1:
        yield from batches
        return
    while True:
        batch = group.agree(lambda: next(batches, None))
        if not group.each(np.array([int(batch is not None)])).any():
            return
        yield spread(empty() if batch is None else batch, what)
