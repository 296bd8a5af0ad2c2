"""What the linear loss on Hopper compiles to, with the compiler that users have: nothing ran."""

from __future__ import annotations

import re

import pytest
import torch

from clustermim_fast.ops import _nvrtc

pytest.importorskip("triton", reason="the kernel's host side needs triton")
from tests.gpu import cuda_kinds, ptxas_log, sass

pytestmark = pytest.mark.skipif(
    _nvrtc.unavailable_reason() is not None, reason=f"CUDA C++: {_nvrtc.unavailable_reason()}"
)
LAYOUT = "masked_cross_entropy/hopper_linear_layout.h"


def _registers_passed_on():
    """Of a thread that multiplies, and of another."""
    text = (_nvrtc.KERNELS / LAYOUT).read_text()
    found = re.search(r"kConsumerRegisters = (\d+), kOtherRegisters = (\d+);", text)
    return int(found[1]), int(found[2])


def _check(kind):
    kernel = kind.kernel
    options = (*kernel.options, *ptxas_log.VERBOSE)
    cubin, log = _nvrtc.compile_source(kernel.source, options)
    code = sass.instructions(cubin)
    assert "for 'sm_90a'" in log
    assert ptxas_log.problems(log) == []
    ops = [c.op for c in code]
    assert sass.count(code)["local"] == 0
    assert kernel.shared_bytes <= 232_448
    # Registers: a block has what its threads start with, and warpgroups pass them on.
    start = int(re.search(r"Used (\d+) registers", log)[1]) * kernel.threads
    consumer, other = _registers_passed_on()
    assert 128 * (2 * consumer + other) <= start <= 65_536
    assert sum(op.startswith("USETMAXREG") for op in ops) == 2
    # In the loop over tiles: logits, this group's columns of dW for both groups' tiles, dX.
    steps = kind.depth // 16
    wanted = steps * (1 + kind.weight) + kind.classes // 16 * kind.input
    assert sum(loop["HGMMA"] for loop in sass.loop_counts(code)) == wanted
    products = [i for i, op in enumerate(ops) if op.startswith("HGMMA")]
    assert ops[products[0]].startswith(f"HGMMA.64x{kind.classes}x16.F32")
    assert ops[products[0]].endswith(".BF16") == (kind.dtype == torch.bfloat16)
    # Among them nothing waits for the memory of other blocks, or empties a cache: of the block's
    # own, once a tile, what products are to read of dZ.
    among = ops[products[0] : products[-1]]
    fences = [op for op in among if op.startswith(("MEMBAR", "CCTL", "ERRBAR"))]
    assert fences == ["MEMBAR.ALL.CTA"] * (kind.input or kind.weight)


@pytest.mark.parametrize("name", cuda_kinds.LINEAR)
def test_nothing_spills_or_is_serialised(name):
    _check(cuda_kinds.LINEAR[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*c, id=c[0]) for c in cuda_kinds.every_linear()]
)
def test_no_kind_spills_or_is_serialised(name, kind):
    _check(kind)
