"""The compiled replace_patches kernels hold what they should, on every target."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from tests.gpu.targets import ARCHS, compiled_only

pytestmark = compiled_only


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_nothing_spills(arch, dtype):
    from tests.gpu import static

    images = torch.zeros(2, 3, 224, 224, dtype=dtype)
    ids = torch.zeros(2, 196, dtype=torch.int64)
    with static.offline(arch) as rows:
        ops.replace_patches(images, ids, torch.zeros(10, 768), ids == 0, 16, backend="triton")
    print(static.table(rows))
    assert len(rows) == 1
    assert rows[0].clean
