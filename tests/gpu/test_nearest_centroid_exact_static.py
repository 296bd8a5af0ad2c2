"""The compiled exact tier keeps its integers in registers, on every target."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.targets import ARCHS, compiled_only

pytestmark = compiled_only


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nothing_spills(arch, metric):
    from clustermim_fast.ops.nearest_centroid.triton_exact import decide_exactly
    from clustermim_fast.ops.nearest_centroid.triton_rows import matrix_rows
    from tests.gpu import static

    rows = torch.zeros(100, dtype=torch.int32)
    with static.offline(arch) as kernels:
        for dtype in (torch.float32, torch.float64):
            decide_exactly(
                matrix_rows(torch.zeros(100, 768, dtype=dtype)),
                matrix_rows(torch.zeros(50, 768, dtype=dtype)),
                metric,
                norm=torch.zeros(50, dtype=torch.float64),
                alive=torch.ones(50, dtype=torch.int8),
                exact_rows=rows,
                number=rows[:1],
                exact_slots=rows.new_zeros(100, 8),
                exact_upper=torch.zeros(100, dtype=torch.float64),
                ids=torch.zeros(100, dtype=torch.int64),
                programs=2112,
            )
    print(static.table(kernels))
    assert len(kernels) == 2
    assert all(kernel.clean for kernel in kernels)
