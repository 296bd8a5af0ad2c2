"""Tokenizers without labels: changes by hand, kappa against scikit-learn, margins by loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sklearn", reason="the extra [train] is not installed")
pytest.importorskip("torchvision", reason="the extra [train] is not installed")

from sklearn.metrics import cohen_kappa_score

from clustermim_fast.tokenizers import PixelTokenizer, stability, token_stability


@pytest.fixture(scope="module")
def photos():
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(24, 3, 4, 4, generator=generator)
    return (F.interpolate(small, 16, mode="bilinear") * 255).byte()


def tokenizer(k, metric="euclidean"):
    generator = torch.Generator().manual_seed(k)
    rows = torch.rand(k, 48, generator=generator)
    return PixelTokenizer.from_centroids(rows, 4, metric=metric)


def test_shift_is_one_pixel_each_way(photos):
    moved = stability.shift(photos, torch.Generator())
    assert torch.equal(moved[..., 1:, 1:], photos[..., :-1, :-1])
    assert torch.equal(moved[..., 0, 1:], photos[..., 0, :-1])
    assert torch.equal(moved[..., 1:, 0], photos[..., :-1, 0])
    assert torch.equal(moved[..., 0, 0], photos[..., 0, 0])


def test_changes_change_little_and_stay_images(photos):
    x = photos.float() / 255
    for name, change in stability.CHANGES.items():
        y = change(x, torch.Generator().manual_seed(0))
        assert y.shape == x.shape, name
        assert 0 <= float(y.min()) <= float(y.max()) <= 1, name
        assert 0.001 < float((y - x).abs().mean()) < 0.2, name
    half = torch.full((1, 3, 64, 64), 0.5)
    noisy = stability.noise(half, torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(stability.NOISE_SIGMA, rel=0.05)


def test_numbers_are_those_of_the_ids(photos):
    several = [tokenizer(6), tokenizer(25, "cosine")]
    found = token_stability(several, photos.split(24), seed=3)
    x = photos.float() / 255
    generator = torch.Generator().manual_seed(3)
    changed = {name: change(x, generator) for name, change in stability.CHANGES.items()}
    for one, result in zip(several, found, strict=True):
        before = one(x).flatten()
        for name, y in changed.items():
            after = one(y).flatten()
            assert result.unchanged[name] == pytest.approx(float((before == after).double().mean()))
            kappa = cohen_kappa_score(before, after)
            assert result.kappa[name] == pytest.approx(kappa)
        assert result.score == pytest.approx(sum(result.kappa.values()) / 4)
        counts = before.bincount(minlength=one.num_clusters)
        assert result.dead == int((counts == 0).sum())
        assert result.patches == 24 * 16
        shares = counts[counts > 0].double() / counts.sum()
        entropy = -(shares * shares.log()).sum()
        assert result.perplexity == pytest.approx(float(entropy.exp()))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_margins(photos, metric):
    one = tokenizer(7, metric)
    found = stability.margins(one, photos)
    rows, centroids = one.vectors(photos).double(), one.centroids.double()
    for row, value in zip(rows, found.tolist(), strict=True):
        if metric == "cosine":
            far = [1 - float(F.cosine_similarity(row, c, dim=0)) for c in centroids]
        else:
            far = [float((row - c).norm()) for c in centroids]
        first, second = sorted(far)[:2]
        assert value == pytest.approx((second - first) / second, abs=1e-4)


def test_one_token_says_nothing(photos):
    """Its ids never change; that must not make it the best."""
    alone, real = token_stability([tokenizer(1), tokenizer(6)], [photos])
    assert set(alone.unchanged.values()) == {1.0}
    assert alone.score == 0 < real.score
    assert (alone.margin, alone.perplexity) == (0, 1)


def test_local_invariance_is_seen(photos):
    """Centroids of smooth patches bear noise better than centroids that differ by noise alone."""
    coarse = PixelTokenizer.fit(photos, 8, 4, algorithm="lloyd")
    centre = coarse.centroids[:1]
    fine = PixelTokenizer.from_centroids(centre + 0.02 * torch.randn(8, 48), 4)
    a, b = token_stability([coarse, fine], [photos])
    assert a.kappa["noise"] > b.kappa["noise"] + 0.2
    assert a.margin > b.margin


def test_batches_and_seed(photos):
    one = [tokenizer(6)]
    whole = token_stability(one, [photos])[0]
    parts = token_stability(one, photos.split(7))[0]
    for name in ("blur", "jitter", "shift"):  # without randomness
        assert parts.unchanged[name] == whole.unchanged[name]
    assert token_stability(one, [photos])[0] == whole
    assert token_stability(one, [photos], seed=1)[0].unchanged["noise"] != 0


def test_refusals(photos):
    for call, message in [
        (lambda: token_stability([], [photos]), "tokenizers: expected one or more, got none"),
        (lambda: token_stability([tokenizer(3)], []), "batches: expected images, got none"),
        (
            lambda: token_stability([tokenizer(3)], [photos.float() * torch.inf]),
            "images must be finite",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
