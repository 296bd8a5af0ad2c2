"""Masks: exact counts, a function of (seed, epoch, sample)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import counter_rng
from clustermim_fast.masking import (
    KINDS,
    MaskConfig,
    Masker,
    num_visible,
    random_mask,
    visible_indices,
)


# 196 at 0.75: the paper's 49; 100 at 0.9: 1 - 0.9 rounds below 0.1; 63: not a multiple.
@pytest.mark.parametrize(
    ("patches", "ratio", "visible"), [(196, 0.75, 49), (100, 0.9, 10), (63, 0.5, 31), (4, 0.75, 1)]
)
def test_counts_are_exact(patches, ratio, visible):
    assert num_visible(patches, ratio) == visible
    mask = random_mask(patches, ratio, 0, 0, np.arange(50))
    assert mask.dtype == torch.bool
    assert mask.shape == (50, patches)
    assert (mask.sum(1) == patches - visible).all()


def test_a_samples_mask_does_not_depend_on_its_batch():
    ids = np.array([4, 90, 17])
    together = random_mask(64, 0.75, 5, 2, ids)
    for row, sample in enumerate(ids):
        assert torch.equal(together[row], random_mask(64, 0.75, 5, 2, [sample])[0])
    assert not torch.equal(together, random_mask(64, 0.75, 5, 3, ids))
    assert not torch.equal(together, random_mask(64, 0.75, 6, 2, ids))


def test_every_patch_is_masked_equally_often():
    share = random_mask(16, 0.75, 0, 0, np.arange(4000)).double().mean(0)
    assert (share - 0.75).abs().max() < 0.03  # four and a half standard deviations


def test_indices():
    mask = random_mask(20, 0.75, 0, 0, np.arange(30))
    visible = visible_indices(mask, 5)
    for row in range(30):
        assert visible[row].tolist() == torch.where(~mask[row])[0].tolist()
    assert torch.equal(visible_indices(mask), visible)


def test_random_masks_are_what_runs_began_with():
    """The patches of the smallest keys are visible: a resumed run must go on with its masks."""
    keys = counter_rng.bits(3, 1, range(20), counter_rng.STREAM_MASK, 30)
    mask = random_mask(30, 0.6, 3, 1, range(20))
    for row, key in zip(mask.tolist(), keys.tolist(), strict=True):
        visible = sorted(range(30), key=lambda i: key[i])[:12]
        assert sorted(visible) == [i for i in range(30) if not row[i]]


# 14 x 14 as the papers, 8 x 8 as CIFAR, a strip and a small grid that hold few rectangles
GRIDS = [(14, 14), (8, 8), (2, 24), (3, 5)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_counts_over_10_000_seeds(kind, grid):
    masker = Masker(MaskConfig(kind, 75 / 196), grid, 4)
    patches = grid[0] * grid[1]
    wanted = {14 * 14: 75, 8 * 8: 25, 2 * 24: 19, 3 * 5: 6}[patches]  # ceil(75 / 196 L)
    replaced_wanted = {14 * 14: 20, 8 * 8: 7, 2 * 24: 5, 3 * 5: 2}[patches]  # round(20 / 196 L)
    assert masker.num_masked == wanted
    for seed in range(40):
        mask, visible, replaced = masker(seed, 0, np.arange(250))
        assert (mask.sum(1) == wanted).all()
        touched = mask
        if kind == "replaced":
            assert masker.num_replaced == replaced_wanted
            assert (replaced.sum(1) == replaced_wanted).all()
            assert not (mask & replaced).any()
            touched = mask | replaced
        else:
            assert replaced is None
        assert visible.shape == (250, masker.num_visible)
        assert torch.equal(visible, visible_indices(touched))


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_depends_on_the_batch(kind):
    masker = Masker(MaskConfig(kind, 0.4), (6, 6), 4)
    ids = np.array([4, 90, 17])
    together = masker(5, 2, ids)
    for row, sample in enumerate(ids):
        for many, one in zip(together, masker(5, 2, [sample]), strict=True):
            assert many is one is None or torch.equal(many[row], one[0])
    assert not torch.equal(together.mask, masker(5, 3, ids).mask)
    assert not torch.equal(together.mask, masker(6, 2, ids).mask)


def test_released_counts():
    """CCViT: 75 hidden and 20 replaced of 196; A2MIM: 30 of 49 squares of 32 px, 22 of 36."""
    ccvit = Masker(MaskConfig("replaced", 75 / 196), (14, 14), 16)
    assert (ccvit.num_masked, ccvit.num_replaced, ccvit.num_visible) == (75, 20, 101)
    for side, squares in ((14, 30), (12, 22)):
        masker = Masker(MaskConfig("random", 0.6, unit=32), (side, side), 16)
        assert masker.num_masked == 4 * squares
    assert Masker(MaskConfig("random", 0.6, unit=32), (7, 7), 32).num_masked == 30


def neighbours(masks, grid):
    """Share of pairs of neighbouring patches of which both are masked."""
    maps = masks.view(-1, *grid)
    right, down = maps[:, :, 1:] & maps[:, :, :-1], maps[:, 1:] & maps[:, :-1]
    return float(right.double().mean() + down.double().mean()) / 2


def test_rectangles():
    """Masked patches are neighbours; without the filling up they are one rectangle after another,
    and places near the centre are hidden more often than corners."""
    grid, ratio = (14, 14), 75 / 196
    share = {}
    for kind in ("random", "block", "inverse_block"):
        masks = Masker(MaskConfig(kind, ratio), grid, 16)(0, 0, np.arange(2000)).mask
        share[kind] = neighbours(masks, grid)
        if kind == "block":
            often = masks.double().mean(0).view(grid)
            assert often[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.15
            assert often[6:8, 6:8].min() > 0.6
    assert share["random"] == pytest.approx(ratio**2, abs=0.01)
    assert share["block"] > 1.8 * ratio**2
    assert share["inverse_block"] > 1.2 * ratio**2


def test_one_rectangle_where_one_is_wanted():
    """min_block as large as what is masked: 12 patches, so 3 x 4 or 4 x 3 for an aspect near 1."""
    config = MaskConfig("block", 12 / 64, min_block=12, aspect=(0.75, 4 / 3))
    masks = Masker(config, (8, 8), 4)(0, 0, np.arange(300)).mask.view(-1, 8, 8)
    whole = 0
    for mask in masks:
        rows, columns = torch.where(mask.any(1))[0], torch.where(mask.any(0))[0]
        box = (int(rows[-1] - rows[0]) + 1) * (int(columns[-1] - columns[0]) + 1)
        whole += box == 12
    assert whole > 250


def test_inverse_block_keeps_what_block_hides():
    grid = (8, 8)
    shown = Masker(MaskConfig("inverse_block", 0.75), grid, 4)(0, 0, np.arange(50)).mask
    assert torch.equal(~shown, Masker(MaskConfig("block", 0.25), grid, 4)(0, 0, np.arange(50)).mask)


@pytest.mark.parametrize("kind", KINDS)
def test_squares_are_masked_whole(kind):
    masks = Masker(MaskConfig(kind, 0.5, unit=8), (8, 12), 4)(0, 0, np.arange(40))
    for part in (masks.mask, masks.replaced):
        if part is not None:
            squares = part.view(40, 4, 2, 6, 2).transpose(2, 3).flatten(3)
            assert (squares.all(-1) == squares.any(-1)).all()


@pytest.mark.parametrize(("patches", "ratio"), [(4, 0.9), (1, 0.5)])
def test_nothing_visible_is_refused(patches, ratio):
    with pytest.raises(ValueError, match="at least one must be visible"):
        random_mask(patches, ratio, 0, 0, [0])


def test_config_refuses():
    with pytest.raises(ValueError, match=r"mask\.ratio must be between 0 and 1"):
        MaskConfig(ratio=1.0)
    with pytest.raises(ValueError, match=r'mask\.kind must be one of "random", "block"'):
        MaskConfig(kind="blocks")
    with pytest.raises(ValueError, match=r'mask\.replace needs mask\.kind = "replaced"'):
        MaskConfig(kind="block", replace=0.1)
    with pytest.raises(ValueError, match=r"mask\.unit must be at least 1"):
        MaskConfig(unit=0)
    with pytest.raises(ValueError, match=r"mask\.aspect must be a range"):
        MaskConfig(aspect=(2.0, 1.0))


@pytest.mark.parametrize(
    ("config", "grid", "message"),
    [
        (MaskConfig(unit=6), (8, 8), "must be a multiple of the patch size, 4"),
        (MaskConfig(unit=8), (8, 7), "divide the image, 32 x 28"),
        (MaskConfig("replaced", 0.9, replace=0.1), (10, 10), "at least one must be left"),
    ],
)
def test_masker_refuses(config, grid, message):
    with pytest.raises(ValueError, match=message):
        Masker(config, grid, 4)
