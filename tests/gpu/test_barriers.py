"""What a program stores and reads again, or overwrites: each case needs a barrier of its kernel.

The strict interpreter raises where one is missing; tools/gpu_mutations.py takes them out in turn.
"""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _triton

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)

if _triton.interpreted():
    import triton
    import triton.language as tl

    from tests.gpu import strict

    @triton.jit
    def _turn(scratch, out, WRITTEN: tl.constexpr, READ: tl.constexpr, BLOCK: tl.constexpr):
        """Twice through scratch; barriers after what is written and after what is read."""
        at = tl.arange(0, BLOCK)
        for turn in range(2):
            tl.store(scratch + at, at + turn)
            if WRITTEN:
                tl.debug_barrier()
            tl.store(out + turn * BLOCK + at, tl.load(scratch + BLOCK - 1 - at))
            if READ:
                tl.debug_barrier()

    @triton.jit
    def _count(scratch, BLOCK: tl.constexpr):
        at = scratch + tl.arange(0, BLOCK)
        for _ in range(3):
            tl.store(at, tl.load(at) + tl.arange(0, BLOCK))


@pytest.mark.parametrize("missing, what", [("WRITTEN", "load"), ("READ", "store")])
def test_a_missing_barrier_is_an_error(missing, what):
    scratch, out = (torch.zeros(n, dtype=torch.int32) for n in (16, 32))
    both = {"WRITTEN": True, "READ": True}
    with strict.checked():
        _turn[(1,)](scratch, out, **both, BLOCK=16)
    assert out[16:].tolist() == list(range(16, 0, -1))
    with pytest.raises(Exception, match=f"missing barrier: {what} by"):  # noqa: SIM117
        with strict.checked():
            _turn[(1,)](scratch, out, **{**both, missing: False}, BLOCK=16)


def test_each_thread_may_read_what_it_stored_itself():
    """Sums held in memory: loaded, added to and stored again, element by element."""
    scratch = torch.zeros(16, dtype=torch.int32)
    with strict.checked():
        _count[(1,)](scratch, BLOCK=16)
    assert scratch.tolist() == list(range(0, 48, 3))


def test_rounded_rows_in_scratch():
    """More tiles of rows than programs, and more than one block of centroids."""
    c = torch.randn(129, 128)
    chosen = torch.randint(129, (600,))
    with strict.checked():
        ids = ops.nearest_centroid(c[chosen] + 0.01, c, backend="triton")
    assert torch.equal(ids, chosen)


def test_numbers_of_several_comparisons():
    """Cosines that tie: products of sums, held in scratch, for each pair in turn."""
    one = torch.randn(20)
    c = torch.stack([one[torch.randperm(20)] for _ in range(4)])
    with strict.checked():
        ids = ops.nearest_centroid(torch.ones(2, 20), c, metric="cosine", backend="triton")
    assert not ids.any()
