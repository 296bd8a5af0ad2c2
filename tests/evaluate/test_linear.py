"""The linear probe: right, chosen on training images only, and repeatable."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from clustermim_fast.evaluate import linear, linear_predict
from clustermim_fast.evaluate import protocol as protocol_module


def blobs(count, seed, classes=3, spread=1.0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, 8)) * 2
    rows = centres[labels] + spread * random.normal(size=(count, 8))
    return torch.from_numpy(rows).float(), torch.from_numpy(labels)


def test_separable_features_are_separated():
    train, labels = blobs(300, 0, spread=0.2)
    test, truth = blobs(100, 1, spread=0.2)
    assert np.array_equal(linear_predict(train, labels, test).predicted, truth.numpy())


def test_equals_scikit_learn_with_the_same_penalty():
    train, labels = blobs(200, 0, spread=3.0)
    test, _ = blobs(150, 1, spread=3.0)
    found = linear_predict(train, labels, test, penalties=(1e-2,))
    scaler = StandardScaler().fit(train.numpy())
    model = LogisticRegression(C=1 / (1e-2 * 200), max_iter=1000)
    model.fit(scaler.transform(train.numpy()), labels.numpy())
    assert np.array_equal(found.predicted, model.predict(scaler.transform(test.numpy())))
    assert found.held_out_accuracy == {}
    assert found.converged


def test_penalty_wins_on_held_out_rows():
    train, labels = blobs(400, 0, spread=4.0)
    found = linear_predict(train, labels, train)
    best = max(found.held_out_accuracy.values())
    assert found.held_out_accuracy[found.penalty] == best


def test_the_test_rows_choose_nothing():
    """Other test rows, other answers, but the same choices; test labels cannot even be given."""
    train, labels = blobs(200, 0, spread=3.0)
    test, _ = blobs(50, 1)
    shifted = 100 + 50 * torch.randn(70, 8)
    first, second = linear_predict(train, labels, test), linear_predict(train, labels, shifted)
    assert first.penalty == second.penalty
    assert first.held_out_accuracy == second.held_out_accuracy
    both = linear_predict(train, labels, torch.cat([test, shifted])).predicted
    assert np.array_equal(both[:50], first.predicted)
    assert "test_labels" not in inspect.signature(linear_predict).parameters


def test_shuffled_test_labels_change_only_the_score(monkeypatch, subject):
    """Whatever the test labels are, the probe is fitted and its penalty chosen in the same way."""
    calls = []

    def spy(train, labels, test, **options):
        found = linear_predict(train, labels, test, **options)
        calls.append((found.penalty, found.predicted.tolist(), labels.tolist()))
        return found

    monkeypatch.setattr(protocol_module, "linear_predict", spy)
    linear(subject(0))
    honest = list(calls)
    calls.clear()
    linear(subject(0, shuffled_test_labels=True))
    assert calls == honest


def test_repeatable():
    train, labels = blobs(300, 0, spread=4.0)
    test, _ = blobs(300, 1, spread=4.0)
    one, two = (linear_predict(train, labels, test, seed=5) for _ in range(2))
    assert np.array_equal(one.predicted, two.predicted)
    assert one.held_out_accuracy == two.held_out_accuracy


def test_constant_feature_and_single_image_of_a_class():
    train, labels = blobs(100, 0)
    train[:, 3] = 5.0
    labels[0] = 7
    found = linear_predict(train, labels, train)
    assert np.isfinite(list(found.held_out_accuracy.values())).all()


def test_refusals():
    train, labels = blobs(20, 0)
    with pytest.raises(ValueError, match="at least two classes"):
        linear_predict(train, torch.zeros_like(labels), train)
    with pytest.raises(ValueError, match="one label a row"):
        linear_predict(train, labels[:-1], train)
