"""Crops: RandomResizedCrop's distribution, our own numbers."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as transforms

from clustermim_fast.data import DataConfig, ImageSet, crop_params
from clustermim_fast.data.augment import evaluation_view
from clustermim_fast.data.store import MemoryStore

QUANTILES = np.linspace(0.1, 0.9, 9)


def test_boxes_lie_inside_and_follow_the_ranges():
    count = 4000
    params = crop_params(0, 0, np.arange(count), [60] * count, [80] * count)
    top, left, height, width = params.boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 60).all()
    assert (left + width <= 80).all()
    share = height * width / 4800
    assert share.min() > 0.18  # 0.2, less the rounding of the sides
    assert share.max() <= 1.0
    aspect = width / height
    assert aspect.min() > 0.72
    assert aspect.max() < 1.38
    theirs = RandomResizedCrop(32, scale=(0.2, 1.0))
    drawn = [theirs.make_params([torch.zeros(3, 60, 80)]) for _ in range(count)]
    wanted = np.array([p["height"] * p["width"] / 4800 for p in drawn])
    # deciles of two samples of 4,000: about 0.008 apart by chance
    assert np.abs(np.quantile(share, QUANTILES) - np.quantile(wanted, QUANTILES)).max() < 0.04
    assert abs(params.flip.mean() - 0.5) < 0.04


def test_a_sample_has_its_crop_in_any_batch():
    ids = np.array([9, 2, 700])
    together = crop_params(4, 8, ids, [32, 40, 50], [32, 30, 20])
    for row, (sample, h, w) in enumerate(zip(ids, [32, 40, 50], [32, 30, 20], strict=True)):
        alone = crop_params(4, 8, [sample], [h], [w])
        assert np.array_equal(together.boxes[row], alone.boxes[0])
        assert together.flip[row] == alone.flip[0]


def test_extreme_shapes_fall_back_to_a_centred_box():
    params = crop_params(0, 0, np.arange(50), [1] * 50, [500] * 50, scale=(0.9, 1.0))
    assert (params.boxes[:, 2] == 1).all()
    assert (params.boxes[:, 3] == 1).all()  # 4/3 of one pixel
    assert (params.boxes[:, 1] == 249).all()
    one = crop_params(0, 0, [0], [1], [1])
    assert one.boxes.tolist() == [[0, 0, 1, 1]]


def test_crops_are_torchvisions_of_the_drawn_boxes():
    images = torch.randint(0, 256, (6, 3, 40, 50), dtype=torch.uint8)
    store = ImageSet(MemoryStore.from_tensor(images), (16, 24))
    got = store.crops(5, 2, np.arange(6), DataConfig())
    params = crop_params(5, 2, np.arange(6), [40] * 6, [50] * 6)
    assert params.flip.any()
    assert not params.flip.all()
    native = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    for row, ((top, left, height, width), flip) in enumerate(
        zip(params.boxes.tolist(), params.flip, strict=True)
    ):
        crop = images[row, :, top : top + height, left : left + width]
        crop = crop.flip(-1) if flip else crop
        wanted = transforms.resize(crop, [16, 24], InterpolationMode.BICUBIC, antialias=True)
        # Without AVX2 torchvision computes in float32 and rounds once.
        assert (got[row].int() - wanted.int()).abs().max() <= (0 if native else 1)


def test_evaluation_view():
    image = torch.arange(3 * 10 * 16, dtype=torch.int64).remainder(256).byte().view(3, 10, 16)
    view = evaluation_view(image, (10, 10), 1.0)
    assert torch.equal(view, image[:, :, 3:13])
    assert evaluation_view(image, (32, 48), 0.875).shape == (3, 32, 48)
