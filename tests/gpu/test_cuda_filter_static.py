"""What Hopper's filter compiles to, by the compiler that users have: nothing of this ran."""

from __future__ import annotations

import itertools
import re

import pytest

from clustermim_fast.ops import _nvrtc

pytest.importorskip("triton", reason="the kernel's host side needs triton")
from tests.gpu import cuda_kinds, ptxas_log, sass

pytestmark = pytest.mark.skipif(
    _nvrtc.unavailable_reason() is not None, reason=f"CUDA C++: {_nvrtc.unavailable_reason()}"
)


def _compiled(kind):
    kernel = kind.kernel
    options = (*kernel.options, *ptxas_log.VERBOSE)
    cubin, log = _nvrtc.compile_source(kernel.source, options)
    return kernel, log, sass.instructions(cubin)


def _check(kind):
    kernel, log, code = _compiled(kind)
    assert "for 'sm_90a'" in log
    assert ptxas_log.problems(log) == []
    ops = [c.op for c in code]
    assert sass.count(code)["local"] == 0
    assert kernel.shared_bytes <= 232_448
    # Registers: a block has what its threads start with, and warpgroups pass them on.
    start = int(re.search(r"Used (\d+) registers", log)[1]) * kernel.threads
    consumer, other = (128, 24) if kind.one_tile else (224, 56)
    rest = 2 * 96 if kind.one_tile else 0  # of two warpgroups that keep theirs
    assert 128 * (2 * consumer + other + rest) <= start <= 65_536
    assert sum(op.startswith("USETMAXREG") for op in ops) == 2
    # Among the products no arrival waits for all memory, and no wait empties a cache.
    products = [i for i, op in enumerate(ops) if op.startswith("HGMMA")]
    among = ops[products[0] : products[-1]]
    assert not any(op.startswith(("MEMBAR", "CCTL", "ERRBAR")) for op in among)
    return code


@pytest.mark.parametrize("name", cuda_kinds.SHIPPED)
def test_nothing_spills_or_is_serialised(name):
    _check(cuda_kinds.SHIPPED[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [pytest.param(*c, id=c[0]) for c in cuda_kinds.every()])
def test_no_kind_spills_or_is_serialised(name, kind):
    _check(kind)


@pytest.mark.parametrize("name", ["c: D 384, K 1000, bfloat16", "d: D 768, K 8192, bfloat16"])
def test_scores_are_looked_at_beside_products(name):
    """Of the loop over tiles of centroids: between two products there are a few scores, not all of
    a tile's."""
    kind = cuda_kinds.SHIPPED[name]
    _, _, code = _compiled(kind)
    ops = [c.op for c in code]
    products = [i for i, op in enumerate(ops) if op.startswith("HGMMA")]
    steps = min(kind.depth // kind.step, 16)  # that scores are spread over
    assert 2 * steps * (kind.step // 16) <= len(products)  # of two tiles, 16 values each
    assert all(op.startswith("HGMMA.64x128x16.F32") for op in (ops[i] for i in products))
    between = [
        sum(op.startswith("FMNMX") for op in ops[a:b]) for a, b in itertools.pairwise(products)
    ]
    # A sixteenth of them is twice four comparisons; six end a tile.
    assert max(between) <= -(-16 // steps) * 8 + 6
    # Each of a tile's 64 scores is added and compared twice, by two tiles and at the end of either.
    assert sum(op.startswith("FADD") for op in ops) >= 4 * 64
