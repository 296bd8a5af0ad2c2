"""Masks: exact counts, a function of (seed, epoch, sample)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast.masking import (
    MaskConfig,
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


@pytest.mark.parametrize(("patches", "ratio"), [(4, 0.9), (1, 0.5)])
def test_nothing_visible_is_refused(patches, ratio):
    with pytest.raises(ValueError, match="at least one must be visible"):
        random_mask(patches, ratio, 0, 0, [0])


def test_config_refuses():
    with pytest.raises(ValueError, match=r"mask\.ratio must be between 0 and 1"):
        MaskConfig(ratio=1.0)
    with pytest.raises(ValueError, match=r'mask\.kind must be "random"'):
        MaskConfig(kind="block")
