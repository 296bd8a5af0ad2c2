"""Images read in place, small enough for a planted bug to be tried in seconds."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _triton

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)

if _triton.interpreted():
    from clustermim_fast.ops.nearest_centroid.triton_pixels import line_of
    from tests.gpu import strict
    from tests.gpu.test_offsets import far_apart

OPTIONS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def problem(images=2):
    pictures = torch.randint(0, 256, (images, 3, 8, 12), dtype=torch.uint8)
    return pictures, torch.randn(6, 48)


def test_tokens_of_strided_images():
    images, c = problem()
    turned = images.transpose(2, 3).contiguous().transpose(2, 3)
    with strict.checked():
        ids = ops.patch_tokens(turned, c, 4, **OPTIONS, backend="triton")
    assert torch.equal(ids, ops.patch_tokens(images, c, 4, **OPTIONS))


def test_pixels_are_divided_as_promised():
    """Of one centroid at a pixel's value and one at its neighbour in float32 the first is nearer,
    whatever the pixel: a quotient rounded otherwise would be the neighbour's."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    values = (images.float() / 255).flatten()
    for neighbour in (torch.inf, -torch.inf):
        c = torch.stack([values, torch.nextafter(values, torch.tensor(neighbour))], 1).view(-1, 1)
        with strict.checked():
            ids = ops.patch_tokens(images, c, 1, backend="triton")
        assert torch.equal(ids, ops.patch_tokens(images, c, 1))


def test_images_far_apart():
    images, c = problem(images=3)
    with strict.checked(races=False):
        ids = ops.patch_tokens(far_apart(images), c, 4, **OPTIONS, backend="triton")
    assert torch.equal(ids, ops.patch_tokens(images, c, 4, **OPTIONS))


def test_sums_of_uint8_images_are_the_cpu_s():
    images, c = problem(images=40)
    with strict.checked():
        got = ops.lloyd_step_images(images, c, 4, **OPTIONS, backend="triton")
    for ours, right in zip(got[:3], ops.lloyd_step_images(images, c, 4, **OPTIONS), strict=False):
        assert torch.equal(ours, right)


# Pixels of 128 are zero in the frame of their line. Two float64 centroids, on its two sides: the
# first is nearer to zero by coordinates, but not to the pixels' values as the op defines them.
@pytest.mark.parametrize("cause", ["values off the line", "centroids rounded"])
def test_grey_pixels_between_two_centroids(cause):
    mean, std = (0.406,), (0.225,)
    power, middle, factor = line_of(4, 1, mean, std).arguments
    value = (torch.tensor(128.0) / 255 - torch.tensor(mean)) / torch.tensor(std)
    moved = float(value.double() - middle) * power * factor
    if cause == "values off the line":
        unit = 2.0**-20  # between coordinates of about 2^-10
        points = torch.tensor([[-(2.0**-10)], [2.0**-10]], dtype=torch.float64).repeat(1, 16)
        points[1] += round(moved / unit) * unit
        rounded = torch.zeros(2, 1, dtype=torch.float64)
        assert moved > 2 * unit
    else:
        points = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(1, 16)
        points[1, :9] += 2.0**-10
        rounded = torch.tensor([[-0.4], [-0.2]], dtype=torch.float64) * 2.0**-10
    coordinates = points + rounded
    assert torch.equal(coordinates.half().double(), points)
    assert points[0].norm() < points[1].norm()
    assert (coordinates[1] - moved).norm() < (coordinates[0] - moved).norm()
    c = middle + coordinates / (factor * power)
    images = torch.full((1, 1, 8, 8), 128, dtype=torch.uint8)
    for order in ([0, 1], [1, 0]):
        with strict.checked():
            ids = ops.patch_tokens(images, c[order], 4, mean=mean, std=std, backend="triton")
        assert ids.flatten().tolist() == [order.index(1)] * 4
