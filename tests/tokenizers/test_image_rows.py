"""The rows that a fit reads: samples of streams, and single patches."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from clustermim_fast.ranks import ALONE
from clustermim_fast.tokenizers import PixelTokenizer
from clustermim_fast.tokenizers.image_rows import ImageRows, PatchSettings
from clustermim_fast.tokenizers.image_stream import ImageStream
from clustermim_fast.tokenizers.kmeans_report import Progress

MEAN, STD = (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)


def test_the_sample_of_a_stream_is_even():
    """Each of 40 batches gives about the same share; binomial bound of 6 standard deviations."""
    batches = [torch.full((10, 1, 4, 4), i, dtype=torch.uint8) for i in range(40)]
    for batch in batches:
        batch[:, 0, 0, 0] = torch.arange(10)  # no image comes twice
    total = np.zeros(40)
    stream = ImageStream(batches, lambda x, _: ImageRows(x, PatchSettings(2)), None)
    for seed in range(50):
        found = stream.sample(lambda dim: 100, seed, ALONE, Progress())
        assert found.rows.shape == (100, 4)
        assert found.num_rows == 40 * 40
        assert found.exact
        total += np.bincount((found.rows[:, 3] * 255).round().int().numpy(), minlength=40)
    assert np.abs(total - 125).max() < 6 * np.sqrt(125)


def test_the_sample_does_not_depend_on_order_or_batches(digits):
    """Nor does a Lloyd fit over a shuffled loader, then."""
    settings = PatchSettings(4, MEAN, STD)
    samples = []
    for images in (digits, digits.flip(0), digits[torch.randperm(400)]):
        for size in (7, 400):
            stream = ImageStream(images.split(size), lambda x, _: ImageRows(x, settings), None)
            samples.append(stream.sample(lambda dim: 300, 5, ALONE, Progress()).rows)
    assert samples[0].shape == (300, 48)
    assert all(torch.equal(sample, samples[0]) for sample in samples)
    prints = set()
    for _ in range(2):
        loader = DataLoader(TensorDataset(digits), batch_size=50, shuffle=True)
        options = {"algorithm": "lloyd", "max_iter": 4}
        prints.add(PixelTokenizer.fit(loader, 8, 4, **options).fingerprint())
    assert len(prints) == 1


def test_single_patches_are_those_of_the_rows(digits):
    for settings in (
        PatchSettings(4, MEAN, STD),
        PatchSettings(2, MEAN, STD, per_patch_norm=True, patch_order="chw"),
    ):
        for metric in ("euclidean", "cosine"):
            rows = ImageRows(digits[:20], settings, metric)
            whole = torch.cat([block for _, block in rows.blocks()])
            assert rows.num_rows == len(whole)
            index = np.random.default_rng(0).integers(0, rows.num_rows, 50)
            assert torch.equal(rows.take(index), whole[index])
