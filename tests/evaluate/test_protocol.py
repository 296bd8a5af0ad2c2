"""Features and the three rows of an evaluation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast.evaluate import (
    FeatureOptions,
    encoder_features,
    format_table,
    knn,
    linear,
    pixel_features,
)
from clustermim_fast.evaluate.features import pooled
from clustermim_fast.evaluate.intervals import accuracy_interval, gain_interval


@pytest.mark.parametrize("evaluate", [knn, linear])
def test_three_rows_with_sizes_and_intervals(subject, evaluate):
    result = evaluate(subject(0))
    assert [row["name"] for row in result["rows"]] == ["pretrained", "random_init", "raw_pixels"]
    assert [row["dim"] for row in result["rows"]] == [32, 32, 3 * 16 * 16]
    assert (result["train_images"], result["test_images"], result["classes"]) == (60, 30, 3)
    for row in result["rows"]:
        low, high = row["interval95_percent"]
        assert 0 <= low <= row["accuracy_percent"] <= high <= 100
    gain = result["gain_points"]["random_init"]["gain"]
    first, second = (row["accuracy_percent"] for row in result["rows"][:2])
    assert gain == pytest.approx(first - second)
    assert json.loads(json.dumps(result)) == result
    table = format_table(result)
    for text in ("random initialisation", "raw pixels", "95 % interval", "30 test images"):
        assert text in table
    assert all(len(line) <= 110 for line in table.splitlines()[:6])


def test_features_are_the_mean_of_patches_and_cls(subject):
    subject = subject(0)
    encoder = subject.encoders["pretrained"].train()
    kwargs = {"mean": subject.mean, "std": subject.std}
    images = (subject.test.images.pixels.float() / 255 - 0.5) / 0.25
    mean = encoder_features(encoder, subject.test.images, batch_size=7, **kwargs)
    cls = encoder_features(encoder, subject.test.images, pool="cls", **kwargs)
    assert encoder.training
    assert encoder.blocks[0].training
    tokens = encoder.eval().forward_features(images)
    torch.testing.assert_close(mean, tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cls, tokens[:, 0], rtol=1e-5, atol=1e-5)


def test_training_mode_anywhere_is_refused(subject):
    encoder = subject(0).encoders["pretrained"].eval()
    encoder.blocks[1].mlp.train()
    with pytest.raises(ValueError, match="eval mode in every module"):
        pooled(encoder, torch.zeros(1, 3, 16, 16), "mean")


def test_pools_that_do_not_exist(subject):
    encoder = subject(0).encoders["pretrained"].eval()
    with pytest.raises(ValueError, match='"mean" or "cls"'):
        pooled(encoder, torch.zeros(1, 3, 16, 16), "max")
    encoder = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        depth=1,
        class_token=False,
        global_pool="avg",
    ).eval()
    with pytest.raises(ValueError, match=r"without \[cls\]"):
        pooled(encoder, torch.zeros(1, 3, 16, 16), "cls")


def test_features_are_computed_once(subject, tmp_path):
    options = FeatureOptions(cache_dir=tmp_path / "features")
    first = subject(0)
    one = knn(first, options=options)
    asked = first.train.images.asked
    again = subject(0)
    two = knn(again, options=options)
    assert two["rows"] == one["rows"]
    assert again.train.images.asked < asked  # raw pixels only
    changed = subject(0)
    with torch.no_grad():
        changed.encoders["pretrained"].blocks[0].mlp.fc1.weight.add_(1.0)
    three = knn(changed, options=options)
    assert changed.train.images.asked > again.train.images.asked
    assert three["rows"][1:] == one["rows"][1:]


def test_a_gain_that_is_equal_on_all_images_is_not_certain():
    won, lost = np.ones(10, bool), np.zeros(10, bool)
    (up, half), (down, other) = gain_interval(won, lost), gain_interval(lost, won)
    assert (up, down) == (100, -100)
    assert half == other > 100 * (1 - 0.025**0.1)  # Clopper and Pearson's bound of 10 in 10
    same, half = gain_interval(won, won)
    assert same == 0
    assert half == pytest.approx(196 * np.sqrt(2) / 12)
    assert gain_interval(np.ones(10_000, bool), np.ones(10_000, bool))[1] < 0.03


@pytest.mark.parametrize("images", [10, 25])
@pytest.mark.parametrize("wins", [(0.0, 0.0), (0.9, 0.05), (0.98, 0.0), (0.3, 0.1), (0.02, 0.02)])
def test_the_interval_of_a_gain_holds_the_truth(images, wins):
    """Exactly: over all counts of images that one side alone gets right, with their chances."""
    win, lose = wins
    covered = 0.0
    for won in range(images + 1):
        for lost in range(images - won + 1):
            rest = images - won - lost
            ways = math.comb(images, won) * math.comb(images - won, lost)
            chance = ways * win**won * lose**lost * (1 - win - lose) ** rest
            ours = np.repeat([True, False, True], [won, lost, rest])
            other = np.repeat([False, True, True], [won, lost, rest])
            gain, half = gain_interval(ours, other)
            covered += chance * (abs(gain - 100 * (win - lose)) <= half)
    assert covered >= 0.93


def test_large_pixels_are_averaged_down():
    class Large:
        def __len__(self):
            return 2

        def images(self, indices):
            return torch.full((len(indices), 3, 96, 64), 255, dtype=torch.uint8)

    rows = pixel_features(Large(), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert rows.shape == (2, 3 * 32 * 21)
    assert torch.equal(rows, torch.ones_like(rows))


def test_intervals():
    accuracy, low, high = accuracy_interval(np.array([True] * 90 + [False] * 10))
    assert accuracy == pytest.approx(90)
    # What a resample got right is Binomial(100, 0.9): its quantiles, and one image for 2,000 draws.
    assert (low, high) == (pytest.approx(84, abs=1), pytest.approx(95, abs=1))
    # All right: no resample differs, and still it is not certain (Wilson: 1 / (1 + 1.96^2 / 10)).
    assert accuracy_interval(np.ones(10, bool)) == (100, pytest.approx(72.2, abs=0.1), 100)
    ours = np.array([True] * 60 + [False] * 40)
    other = np.array([True] * 50 + [False] * 50)
    gain, half = gain_interval(ours, other)
    assert gain == pytest.approx(10)
    # 10 images won and none lost, and the added one of each: 11 and 1 of 102.
    spread = 11 / 102 + 1 / 102 - (10 / 102) ** 2
    assert half == pytest.approx(100 * (0.1 - 10 / 102) + 196 * np.sqrt(spread / 102))
    with pytest.raises(ValueError, match="like ours"):
        gain_interval(ours, other[:-1])
    with pytest.raises(ValueError, match="at least one"):
        accuracy_interval(np.zeros(0, bool))
