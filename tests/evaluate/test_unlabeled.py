"""Effective rank, neighbours and frequencies against formulas written out in numpy."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast.evaluate.frequency import block_frequencies, log_amplitude
from clustermim_fast.evaluate.unlabeled import nearest_neighbours, rankme
from tests.evaluate.test_attention import SMALL, VIEW, Noise


def test_rankme_of_known_spectra():
    orthogonal = torch.linalg.qr(torch.randn(40, 7, dtype=torch.float64)).Q
    # eps adds to each of 7 shares of 1/7: the entropy moves by 7 * eps * (ln 7 - 1).
    assert rankme(orthogonal) == pytest.approx(7, rel=1e-6)
    assert rankme(torch.outer(torch.randn(40), torch.randn(7))) == pytest.approx(1, abs=1e-4)
    assert rankme(5 * orthogonal) == pytest.approx(rankme(orthogonal), rel=1e-9)


def test_rankme_equals_the_formula():
    features = np.random.default_rng(0).normal(size=(30, 12)) * np.arange(1, 13)
    # Singular values as roots of the Gram matrix's eigenvalues: another algorithm.
    values = np.sqrt(np.linalg.eigvalsh(features.T @ features))
    share = values / values.sum() + 1e-7
    expected = math.exp(-(share * np.log(share)).sum())
    assert rankme(torch.from_numpy(features)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 3), torch.zeros(0, 3), torch.full((4, 3), torch.nan)]
)
def test_rankme_refuses(bad):
    with pytest.raises((ValueError, torch.linalg.LinAlgError)):
        rankme(bad)


def test_neighbours_by_definition():
    rows = np.random.default_rng(1).normal(size=(25, 5))
    queries = torch.tensor([0, 7, 24])
    found = nearest_neighbours(torch.from_numpy(rows), queries, 4)
    for query, neighbours in zip(queries.tolist(), found.tolist(), strict=True):
        cosine = {
            other: rows[query]
            @ rows[other]
            / np.linalg.norm(rows[query])
            / np.linalg.norm(rows[other])
            for other in range(25)
            if other != query
        }
        assert neighbours == sorted(cosine, key=lambda other: -cosine[other])[:4]
    with pytest.raises(ValueError, match="1 to 24"):
        nearest_neighbours(torch.from_numpy(rows), queries, 25)


def test_log_amplitude_equals_the_sum_over_pixels():
    maps = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected = np.zeros(4)
    for image in maps.numpy().reshape(6, 6, 6):
        for k in range(4):
            value = sum(
                image[y, x] * cmath.exp(-2j * math.pi * k * (x + y) / 6)
                for y in range(6)
                for x in range(6)
            )
            expected[k] += math.log(abs(value)) / 6
    np.testing.assert_allclose(log_amplitude(maps).numpy(), expected - expected[0], rtol=1e-9)


def test_a_checkerboard_is_the_highest_frequency_and_a_constant_the_lowest():
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = 1.0 + 0.5 * (-1.0) ** (rows + columns)
    curve = log_amplitude(board.expand(1, 1, 8, 8))
    # At 0 the sum is 64, at pi it is 32.
    assert float(curve[-1]) == pytest.approx(math.log(0.5), abs=1e-9)
    assert float(curve[1:-1].max()) < -20
    assert float(log_amplitude(torch.ones(1, 1, 8, 8))[1:].max()) < -20


def test_blocks_and_stages():
    images = Noise(5)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL).train()
    found = block_frequencies(vit, images, batch_size=2, **VIEW)
    assert vit.training
    assert [len(curve) for curve in found.log_amplitude] == [3, 3]
    whole = block_frequencies(vit, images, batch_size=5, **VIEW)
    torch.testing.assert_close(found.variance, whole.variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.log_amplitude[1], whole.log_amplitude[1], rtol=1e-4, atol=1e-4)
    maps = vit.eval().forward_intermediates(
        (images.pixels / 255 - 0.5) / 0.25, norm=False, intermediates_only=True
    )
    expected = maps[1].detach().numpy().astype(np.float64).reshape(5, 32, 16).var(-1, ddof=1).mean()
    assert float(whole.variance[1]) == pytest.approx(expected, rel=1e-5)
    stages = block_frequencies(timm.create_model("resnet10t", num_classes=0), Noise(1, 64), **VIEW)
    assert [len(curve) for curve in stages.log_amplitude] == [17, 9, 5, 3, 2]
