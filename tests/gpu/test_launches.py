"""What calls launch, that none of them waits for the device, and grids that hardware takes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _triton
from tests.gpu import launches
from tests.gpu.launches import (
    HALF,
    NORM,
    WIDE,
    assign,
    linear,
    lloyd,
    lloyd_images,
    logits,
    replace,
)
from tests.gpu.launches import tokens as patch_tokens

pytestmark = [
    pytest.mark.skipif(_triton.interpreted(), reason="Triton: tiles of real calls"),
    pytest.mark.skipif(not torch.version.cuda, reason="Triton: not even fake CUDA tensors"),
]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"

FLOATS = (torch.float32, HALF, torch.float16, WIDE)
LOSS_FLOATS = FLOATS[:3]  # Triton refuses float64 there
IMAGES = (torch.uint8, *FLOATS)
REDUCTIONS = ("mean", "sum", "none")
MODES = [
    *[partial(assign, 70, 33, 9, t, metric=m, return_distance=d)
      for t in FLOATS for m in ("euclidean", "cosine", "dot") for d in (False, True)],
    partial(assign, 0, 33, 9), partial(assign, 70, 0, 9), partial(assign, 70, 768, 5000),
    *[partial(patch_tokens, 2, t, per_patch_norm=n) for t in IMAGES for n in (False, True)],
    *[partial(lloyd, 70, 33, weighted=w, metric=m) for w in (False, True)
      for m in ("euclidean", "dot")],
    *[partial(lloyd_images, 2, t, per_patch_norm=n) for t in IMAGES for n in (False, True)],
    *[partial(replace, 2, t, **n) for t in IMAGES for n in ({}, NORM)],
    *[partial(logits, k, t, 2, weighted=w, reduction=r, backward=b) for k in (1, 9, 5000)
      for t in LOSS_FLOATS for w in (False, True) for r in REDUCTIONS for b in (False, True)],
    *[partial(linear, k, 40, t, 2, weighted=w, reduction=r, backward=b) for k in (1, 9, 5000)
      for t in LOSS_FLOATS for w in (False, True) for r in REDUCTIONS for b in (False, True)],
    *[partial(linear, 9, 40, t, 2, weighted=w, reduction=r, backward=b, backend="cuda")
      for t in LOSS_FLOATS[1:] for w in (False, True) for r in REDUCTIONS for b in (False, True)],
    partial(linear, 9, 264, HALF, 2, return_metrics=True, masked_per_sample=3, backend="cuda"),
    partial(assign, 70, 40, 9, backend="cuda"),
    *[partial(linear, k, 40, t, 2, return_metrics=True, masked_per_sample=3)
      for k in (9, 5000) for t in LOSS_FLOATS],
]  # fmt: skip


def words(call: partial[object]) -> str:
    given = [*call.args, *(f"{k}={v}" for k, v in call.keywords.items())]
    return " ".join([call.func.__name__, *map(str, given)]).replace("torch.", "")


@pytest.mark.parametrize("call", MODES, ids=words)
def test_the_host_never_waits(call):
    with launches.watched():
        call()


def test_counts_of_tiers_are_read_where_they_are_asked_for():
    reads = pytest.raises(Exception, match=r"_local_scalar_dense|between")
    with launches.watched(), ops.record_stats(), reads:
        assign(70, 33, 9)


def test_what_waits_is_noticed():
    for waits in (lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0]):
        with launches.watched(), pytest.raises(Exception, match=r"aten\.") as caught:
            waits(torch.empty(3))
        assert "Data" in type(caught.value).__name__ or "Dynamic" in type(caught.value).__name__


def test_copies_between_devices_are_noticed():
    with launches.watched(), pytest.raises(launches.Waits):
        torch.empty(3, device="cuda").cpu()


def test_launches_are_those_of_the_document():
    """A new launch is noticed. Made by ``python -m tests.gpu.launches``."""
    assert launches.table() in DOCUMENT.read_text(encoding="utf-8")


LARGE = {
    "rows": partial(assign, 2**23 + 5, 1, 65_536),
    "images": partial(patch_tokens, 2**17),
    "each patch normalised": partial(patch_tokens, 2**12, per_patch_norm=True),
    "Lloyd, wide rows": partial(lloyd, 2**22 + 5, 2**14),
    "Lloyd, images": partial(lloyd_images, 2**16),
    "pasted into 2^24 images": partial(replace, 2**24),
    "logits": partial(logits, 65_536, b=2**22),
    "linear, few classes": partial(linear, b=2**22),
    "linear, CUDA C++": partial(linear, b=2**22, backend="cuda"),
    "linear, many classes": partial(linear, 65_536, 512, b=64),
}


@pytest.mark.parametrize("name", LARGE)
def test_grids_are_within_the_hardware_s_limits(name):
    """Assignments and Lloyd steps take 2^21 rows at a time, whatever the number of all."""
    with launches.watched() as seen:
        LARGE[name]()
    assert seen.grids
    for kernel, grid in seen.grids:
        x, y, z = (*grid, 1, 1)[:3]
        assert 0 < x < 2**31, kernel
        assert 0 < y < 2**16, kernel
        assert 0 < z < 2**16, kernel


@pytest.mark.parametrize("loss", [logits, linear])
def test_more_tokens_than_row_numbers_hold_are_refused(loss):
    with launches.watched(), pytest.raises(ValueError, match="split the batch"):
        loss(9, b=2**30 // 196 + 1)
