"""What the static tests share; imports no triton."""

from __future__ import annotations

import pytest

from clustermim_fast.ops import _triton

ARCHS = (80, 90, 100)
# Column of the machine code's table that must count something in a kernel with products.
TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTCMMA"}
compiled_only = pytest.mark.skipif(
    _triton.interpreted(),
    reason="Triton: compiled in the ordinary run, not where it is interpreted",
)
