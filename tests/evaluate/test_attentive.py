"""Attentive probes: a sweep is what separate runs are; the test set is read once, last."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import torch
from torch.nn import functional as F

from clustermim_fast.evaluate import (
    AbMILP,
    AbMILPSettings,
    AttentiveSettings,
    ProbeTraining,
    Subject,
    attentive,
    format_table,
)
from clustermim_fast.evaluate.probe import fit_probes, predict_probe
from clustermim_fast.evaluate.rows import Labelled

QUICK = ProbeTraining(epochs=4, warmup_epochs=1, batch_size=16)
SETTINGS = AttentiveSettings(training=QUICK, learning_rates=(0.1, 1.0))


def planted(count, seed=0, tokens=9, dim=8):
    """One token of each image, at a random place, tells the class; the others are noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    x = torch.randn(count, tokens, dim, generator=random)
    place = torch.randint(tokens, (count,), generator=random)
    x[torch.arange(count), place, 0] = 6.0
    x[torch.arange(count), place, 1] = 4.0 * (2 * labels - 1)
    return x, labels


def abmilp(heads):
    return AbMILP(8, (3, 3), 0, None, heads)


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_a_sweep_is_separate_runs(optimizer):
    x, labels = planted(64)
    training = ProbeTraining(
        epochs=3, warmup_epochs=1, batch_size=16, optimizer=optimizer, weight_decay=0.01
    )
    inputs = {"abmilp": x, "mean": x.mean(1)}
    poolings = {"abmilp": abmilp, "mean": None}
    rates = (0.1, 0.5, 2.0)
    swept = fit_probes(inputs, labels, poolings, dict.fromkeys(inputs, rates), training, seed=3)
    for head, rate in enumerate(rates):
        for name in inputs:
            (alone,) = fit_probes(
                {name: inputs[name]}, labels, {name: poolings[name]}, {name: (rate,)}, training,
                seed=3,
            ).values()  # fmt: skip
            rows = inputs[name]
            # Twelve updates in float32, summed in another order.
            torch.testing.assert_close(
                swept[name](rows)[:, head], alone(rows)[:, 0], rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("pooling", [None, abmilp])
def test_a_probe_without_batch_norm_is_a_linear_classifier(pooling):
    x, labels = planted(64)
    x = x if pooling else x.mean(1)
    training = replace(QUICK, batch_norm=False)
    probe = fit_probes({"a": x}, labels, {"a": pooling}, {"a": (1.0, 3.0)}, training)["a"]
    rows = probe.pooling(x) if pooling else x[:, None].expand(-1, 2, -1)
    for head, linear in enumerate(probe.classifier.heads):
        wanted = rows[:, head] @ linear.weight.T + linear.bias
        torch.testing.assert_close(probe(x)[:, head], wanted, rtol=1e-5, atol=1e-5)


def test_a_rate_that_explodes_leaves_the_others_alone():
    x, labels = planted(64)
    training = ProbeTraining(epochs=2, warmup_epochs=0, batch_size=16, optimizer="adamw")

    def fit(*rates):
        return fit_probes({"a": x}, labels, {"a": abmilp}, {"a": rates}, training)["a"](x)

    found = fit(1.0, 1e38)
    assert float(found[:, 1].detach().abs().max()) > 1e30
    torch.testing.assert_close(found[:, 0], fit(1.0)[:, 0], rtol=1e-3, atol=1e-4)


def test_one_update_is_lars_by_its_formula():
    """First update of a probe on rows: momentum buffer = update, trust ratio on the matrix only."""
    x, labels = planted(32)
    rows = x.mean(1)
    start = fit_probes(
        {"m": rows}, labels, {"m": None}, {"m": (1e-12,)}, ProbeTraining(1, 0, 32), seed=1
    )["m"]
    found = fit_probes(
        {"m": rows}, labels, {"m": None}, {"m": (4.0,)}, ProbeTraining(1, 0, 32), seed=1
    )["m"]
    weight, bias = (p.detach().double() for p in start.classifier.heads[0].parameters())
    z = rows.double()
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-6).sqrt()
    probability = (z @ weight.T + bias).softmax(1) - F.one_hot(labels, 2)
    grad_weight, grad_bias = probability.T @ z / 32, probability.mean(0)
    rate = 4.0 * 32 / 256
    trust = 0.001 * weight.norm() / grad_weight.norm()
    new_weight, new_bias = found.classifier.heads[0].parameters()
    torch.testing.assert_close(
        new_weight.double(), weight - rate * trust * grad_weight, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(new_bias.double(), bias - rate * grad_bias, rtol=1e-5, atol=1e-6)


def test_attention_finds_what_the_mean_drowns():
    x, labels = planted(256)
    test, truth = planted(256, seed=1)
    training = ProbeTraining(epochs=30, warmup_epochs=3, batch_size=64, optimizer="adamw")
    probes = fit_probes(
        {"abmilp": x, "mean": x.mean(1)},
        labels,
        {"abmilp": abmilp, "mean": None},
        {"abmilp": (0.2,), "mean": (0.2,)},
        training,
    )
    accuracy = {
        name: float((predict_probe(probes[name], rows)[:, 0] == truth).double().mean())
        for name, rows in (("abmilp", test), ("mean", test.mean(1)))
    }
    assert accuracy["abmilp"] > 0.95 > accuracy["mean"] + 0.02


class Counting:
    """Images that write into a shared list which of them were asked for, and by whom."""

    def __init__(self, images, name, log):
        self.inner, self.name, self.log = images, name, log

    def __len__(self):
        return len(self.inner)

    def images(self, indices):
        self.log += [(self.name, int(index)) for index in indices]
        return self.inner.images(indices)


def counted(subject, log):
    parts = [
        Labelled(Counting(part.images, name, log), part.labels, name)
        for name, part in (("train", subject.train), ("test", subject.test))
    ]
    encoders = {"pretrained": subject.encoders["pretrained"]}
    return Subject(encoders, *parts, subject.class_names, subject.mean, subject.std)


def test_the_test_set_is_read_once_and_last(subject):
    log = []
    attentive(counted(subject(0), log), AttentiveSettings(training=QUICK, seeds=2))
    assert log == [("train", i) for i in range(60)] + [("test", i) for i in range(30)]


def test_test_labels_change_only_the_score(subject):
    """Which also shows it repeatable, from memory and from disk."""
    honest = attentive(subject(0), SETTINGS)
    on_disk = replace(SETTINGS, on_disk=True)
    other = attentive(subject(0, shuffled_test_labels=True), on_disk)
    for row, same in zip(honest["rows"], other["rows"], strict=True):
        for key in ("learning_rate", "held_out_train_accuracy_percent"):
            assert row[key] == same[key]
    assert honest["rows"] != other["rows"]


def test_rows_seeds_and_table(subject):
    settings = AttentiveSettings(
        pool=("abmilp", "map", "cls", "mean", "centre2"),
        training=ProbeTraining(epochs=1, batch_size=32),
        learning_rates=(0.1, 1.0),
        seeds=2,
    )
    result = attentive(subject(0), settings)
    assert json.loads(json.dumps(result)) == result
    rows = result["rows"]
    assert [row["name"] for row in rows] == ["pretrained"] * 5 + ["random_init"] * 5
    assert [row["pooling"] for row in rows[:5]] == list(settings.pool)
    assert [row["pooling_parameters"] for row in rows[2:5]] == [0, 0, 0]
    assert rows[0]["pooling_parameters"] == 33
    for row in rows:
        low, high = row["interval95_percent"]
        assert low <= row["accuracy_percent"] <= high
        seeds = torch.tensor(row["seed_accuracies_percent"], dtype=torch.float64)
        assert row["accuracy_percent"] == pytest.approx(float(seeds.mean()))
        assert row["seed_deviation_points"] == pytest.approx(float(seeds.std()))
        for rate, scores in zip(
            row["learning_rate"], row["held_out_train_accuracy_percent"], strict=True
        ):
            assert scores[f"{rate:g}"] == max(scores.values())
    gain = result["gain_points"]["pretrained cls"]["gain"]
    assert gain == pytest.approx(rows[0]["accuracy_percent"] - rows[2]["accuracy_percent"])
    table = format_table(result)
    for text in ("AbMILP", "random initialisation, [cls] token", "mean of 2 seeds", "1 epochs"):
        assert text in table
    assert all(len(line) <= 110 for line in table.splitlines())


def test_defaults_are_the_papers():
    """Raw tokens of the last block, one score for each patch, 90 epochs of LARS."""
    settings = AttentiveSettings()
    assert (settings.layer, settings.norm) == (-1, False)
    assert settings.abmilp == AbMILPSettings("patch", "none", 1, "relu", "none")
    training = settings.training
    assert (training.epochs, training.warmup_epochs) == (90, 10)
    assert (training.optimizer, training.weight_decay) == ("lars", 0)
    assert 0.1 in settings.learning_rates


def test_hostile_inputs(subject):
    def few(count, labels=None):
        whole = subject(0)
        images = whole.train.images
        images.pixels = images.pixels[:count]
        labels = whole.train.labels[:count] if labels is None else labels
        train = Labelled(images, labels, "few")
        return Subject(whole.encoders, train, whole.test, whole.class_names, whole.mean, whole.std)

    with pytest.raises(ValueError, match="at least two classes, got one"):
        attentive(few(10, torch.zeros(10, dtype=torch.int64)), SETTINGS)
    with pytest.raises(ValueError, match="seeds: expected at most 2, one a training image, got 3"):
        attentive(few(2), AttentiveSettings(seeds=3))
    with pytest.raises(ValueError, match=r"too few.*pass one learning rate or more images"):
        attentive(few(2), SETTINGS)
    one_rate = AttentiveSettings(training=QUICK, learning_rates=(0.1,))
    assert attentive(few(2), one_rate)["rows"][0]["held_out_train_accuracy_percent"] == [{}]


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (AttentiveSettings, {"seeds": 0}, "seeds: expected at least 1, got 0"),
        (AttentiveSettings, {"pool": ()}, "pool: expected one or more"),
        (AttentiveSettings, {"pool": ("cls", "cls")}, "pool: expected one or more different"),
        (AttentiveSettings, {"pool": ("max",)}, "pool: expected abmilp, map"),
        (AttentiveSettings, {"learning_rates": (0.1, -1.0)}, "learning_rates: expected positive"),
        (ProbeTraining, {"epochs": 0}, "epochs, batch_size"),
        (ProbeTraining, {"optimizer": "sgd"}, 'expected "lars" or "adamw", got \'sgd\''),
        (ProbeTraining, {"warmup_epochs": -1.0}, "warmup_epochs"),
    ],
)
def test_settings_that_do_not_exist(make, options, named):
    with pytest.raises(ValueError, match=named):
        make(**options)
