"""Values of images as the kernels read them, bit for bit those of plain torch's divisions."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast.ops import _triton
from clustermim_fast.ops.patch_tokens.reference import normalize_reference

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)

if _triton.interpreted():
    import triton
    import triton.language as tl

    from clustermim_fast.ops.nearest_centroid.triton_rows import (
        column_places,
        image_rows,
        load_values,
        row_starts,
    )

    @triton.jit
    def _read_kernel(x, out, D, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        for begin in range(0, D, BLOCK):
            ds = begin + tl.arange(0, BLOCK)
            places = row_starts(x, row, "images") + column_places(x, ds, "images")
            values = load_values(x, places, ds, ds < D, "images", True)
            tl.store(out + row.to(tl.int64) * D + ds, values, mask=ds < D)


def read(images, mean, std):
    """The values of square images [B, C, H, H], a patch each, and what torch makes of them."""
    rows = image_rows(images, images.shape[2], mean, std)
    out = torch.empty(rows.num_rows, rows.dim, dtype=torch.float64)
    _read_kernel[(rows.num_rows,)](rows.arguments, out, rows.dim, BLOCK=4096)
    return out.view(images.shape), normalize_reference(images, mean, std).double()


def same(ours, right):
    equal = (ours == right) & (ours.signbit() == right.signbit())
    return bool((equal | (ours.isnan() & right.isnan())).all())


@pytest.mark.parametrize("std", [(0.229, 0.224, 0.225), (1e-30, 1.0, 1e30), (2e-38, 3e38, 0.1)])
@pytest.mark.parametrize(
    "mean", [None, (0.0, 0.0, 0.0), (0.485, 0.456, 1e-40), (0.485, 0.456, 0.406)]
)
def test_every_uint8_pixel(mean, std):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert same(*read(images, mean, None if mean is None else std))


def floats(kind, std):
    """float32 [64, 64] whose quotients by ``std`` are of a kind that is easily rounded wrongly."""
    draw = torch.randint(-(2**31), 2**31, (64, 64)).to(torch.int32)
    if kind == "any bits":
        values = draw.view(torch.float32)
        return values.where(values == values, torch.nan)  # quiet ones
    if kind == "subnormal":
        return draw.float() * 2.0**-158 * std
    places = torch.randint(2**24, 2**25, (64, 64)) | 1  # halfway between two float32
    near = (places.double() * 2.0**-24 * std).float()
    return near.nextafter(torch.where(draw > 0, 9.0, 0.0) * torch.tensor(std).float())


@pytest.mark.filterwarnings("ignore:overflow")  # what is beyond float32 is infinite, as it should
@pytest.mark.parametrize("kind", ["any bits", "subnormal", "halfway"])
@pytest.mark.parametrize("std", [0.229, 1.9999998807907104, 3.0, 1023 * 2.0**-40, 2e-38, 3e38])
def test_floating_pixels(kind, std):
    images = torch.stack([floats(kind, std) for _ in range(4)])[None]
    assert same(*read(images, (0.0,) * 4, (std,) * 4))


def test_quotients_halfway_between_subnormal_numbers():
    odd = 2 * torch.arange(64 * 64) + 1
    for factor in (3, 5, 7, 49, 641):
        images = (odd * factor).float().view(1, 1, 64, 64) * 2.0**-149  # / 2 factor
        assert same(*read(images, (0.0,), (2.0 * factor,)))
