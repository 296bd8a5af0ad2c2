"""How the row kernels of the masked losses are launched, whatever the number of classes."""

from __future__ import annotations

import pytest

triton_rows = pytest.importorskip(
    "clustermim_fast.ops.masked_cross_entropy.triton_rows", reason="triton is not installed"
)
WARP = 32
MOST_WARPS = 16  # 1024 threads where a warp has 64: what CDNA takes


@pytest.mark.parametrize("classes", [1, 2, 50, 100, 257, 1000, 1024, 8192, 16384, 16385, 10**6])
def test_bug25_the_launch_does_not_follow_the_next_power_of_two(classes):
    # Others give a row of 100 classes 32 warps, and one of 10^5 a tile that does not fit.
    shape = triton_rows.tile(classes)
    threads = WARP * shape["num_warps"]
    assert shape["num_warps"] <= MOST_WARPS
    assert shape["ROWS"] * shape["BLOCK"] <= 32 * threads  # registers of a thread for them
    assert threads <= max(64, shape["ROWS"] * classes)  # each has a value
