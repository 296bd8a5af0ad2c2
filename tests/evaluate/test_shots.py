"""Low-shot draws: the right number of each class, by seed; evaluations that use them."""

from __future__ import annotations

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import numpy as np
import torch

from clustermim_fast.evaluate import (
    AttentiveSettings,
    ProbeTraining,
    attentive,
    format_table,
    knn,
    linear,
)
from clustermim_fast.evaluate.intervals import accuracy_interval
from clustermim_fast.evaluate.shots import Picked, draw_shots, shots_label

LABELS = torch.tensor([0] * 40 + [1] * 25 + [3] * 4)


@pytest.mark.parametrize(
    ("shots", "counts"),
    [("", [40, 25, 4]), ("4", [4, 4, 4]), ("10%", [4, 2, 1]), ("1%", [1, 1, 1]),
     ("100%", [40, 25, 4]), ("2.5%", [1, 1, 1])],
)  # fmt: skip
def test_counts_of_each_class(shots, counts):
    rows = draw_shots(LABELS, shots, seed=0)
    assert torch.equal(rows, rows.unique())
    assert LABELS[rows].unique(return_counts=True)[1].tolist() == counts
    assert torch.equal(rows, draw_shots(LABELS, shots, seed=0))
    if shots == "4":
        assert not torch.equal(rows, draw_shots(LABELS, shots, seed=1))


def test_draws_are_uniform():
    """Each of 40 rows is drawn 500 times of 5,000 on average; five standard deviations are 106."""
    counts = torch.zeros(40)
    for seed in range(5000):
        counts[draw_shots(LABELS[:40], "4", seed)] += 1
    assert (counts - 500).abs().max() < 106


@pytest.mark.parametrize("shots", ["0", "0%", "101%", "-1", "1.5", "ten", "%", "5%%", "nan"])
def test_shots_that_do_not_exist(shots):
    with pytest.raises(ValueError, match="shots: expected a share"):
        draw_shots(LABELS, shots, 0)


def test_too_few_of_a_class():
    with pytest.raises(ValueError, match="class 3 has 4 training images, fewer than 5"):
        draw_shots(LABELS, "5", 0)


def test_labels_of_files():
    assert [shots_label(shots) for shots in ("", "10%", "5")] == ["", "10pct", "5_per_class"]


def test_picked_images(subject):
    images = subject(0).train.images
    rows = torch.tensor([3, 7, 11])
    picked = Picked(images, rows)
    assert len(picked) == 3
    assert torch.equal(picked.images(torch.tensor([2, 0])), images.pixels[[11, 3]])


def quick(subject, **options):
    training = ProbeTraining(epochs=1, warmup_epochs=0, batch_size=8)
    return attentive(
        subject, AttentiveSettings(training=training, pool=("abmilp", "mean"), **options)
    )


@pytest.mark.parametrize("evaluate", [knn, linear, quick])
def test_seeds_draw_other_images(subject, evaluate):
    more = {"k": 3} if evaluate is knn else {}
    result = evaluate(subject(0), shots="5", seeds=2, **more)
    assert result["train_images"] == 15
    assert "low-shot: 5" in format_table(result)
    for row in result["rows"]:
        assert len(row["seed_accuracies_percent"]) == 2
    alone = [evaluate(subject(0), shots="5", seed=seed, **more) for seed in (0, 1)]
    for row, *single in zip(result["rows"], *(one["rows"] for one in alone), strict=True):
        assert row["seed_accuracies_percent"] == pytest.approx(
            [one["accuracy_percent"] for one in single]
        )


def test_the_network_runs_over_the_drawn_images_only(subject):
    whole, few = subject(0), subject(0)
    sizes = []
    for encoder in (whole.encoders["pretrained"], few.encoders["pretrained"]):
        count = [0]
        sizes.append(count)
        encoder.patch_embed.register_forward_hook(
            lambda _m, _i, out, count=count: count.__setitem__(0, count[0] + len(out))
        )
    quick(whole)
    quick(few, shots="5", seeds=1)
    assert [size[0] for size in sizes] == [60 + 30, 15 + 30]


def test_seeds_without_meaning_are_refused(subject):
    with pytest.raises(ValueError, match="give shots= with seeds="):
        knn(subject(0), seeds=3)
    for evaluate in (knn, linear, quick):
        with pytest.raises(
            ValueError, match="seeds: expected at most 60, one a training image, got 61"
        ):
            evaluate(subject(0), seeds=61, shots="2")
    with pytest.raises(ValueError, match="seeds: expected at least 1, got 0"):
        linear(subject(0), seeds=0)


def test_bootstrap_is_the_normal_interval_of_many_images():
    """The standard error of a mean of 4,000 shares, of which 2,000 resamples know 1.96 to 3 %."""
    share = np.random.default_rng(0).integers(0, 4, 4000) / 3
    mean, low, high = accuracy_interval(share)
    half = 196 * share.std() / np.sqrt(4000)
    assert mean == pytest.approx(100 * share.mean())
    # Four standard errors of the 2.5 % quantile of 2,000 normal draws: 4 * 0.06 / 1.96 = 12 %.
    assert high - mean == pytest.approx(half, rel=0.13)
    assert mean - low == pytest.approx(half, rel=0.13)
    assert accuracy_interval(share) == accuracy_interval(share)
