"""What a GPU back-end's self-check notices."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast.ops import _self_checks


def _gradients():
    right = torch.randn(3000, 512)
    right[::4] = 0  # tokens that do not count
    return right, right.clone()


def test_rounding_is_no_difference():
    right, found = _gradients()
    _self_checks._close("op", (found.bfloat16(),), (right,))


@pytest.mark.parametrize("row, values", [(17, slice(8, 16)), (17, slice(None)), (16, slice(1))])
def test_one_stale_row_or_chunk_of_many_is_noticed(row, values):
    right, found = _gradients()
    found[row, values] = 0 if row == 17 else 1e-3  # beside a token that does not count
    with pytest.raises(AssertionError, match=r"op: .*differ"):
        _self_checks._close("op", (found,), (right,))


def test_one_wrong_loss_of_many_is_noticed():
    losses = torch.rand(40, 50, 1) + 1
    found = losses.clone()
    found[3, 7] *= 1.1
    with pytest.raises(AssertionError, match="op: 1 of 2000 rows differ"):
        _self_checks._close("op", (found,), (losses,))
