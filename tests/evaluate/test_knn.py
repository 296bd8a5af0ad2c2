"""kNN against a loop over the definition."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import torch

from clustermim_fast.evaluate import knn_predict


def by_definition(train, labels, test, k, temperature):
    """Cosine similarities one by one; votes exp(s / T) and 1; the lowest class wins a tie."""
    weighted, plain = [], []
    for row in test:
        similarity = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in train]
        nearest = np.argsort(-np.array(similarity))[:k]
        votes, counts = np.zeros(labels.max() + 1), np.zeros(labels.max() + 1)
        for neighbour in nearest:
            votes[labels[neighbour]] += np.exp(similarity[neighbour] / temperature)
            counts[labels[neighbour]] += 1
        weighted.append(votes.argmax())
        plain.append(counts.argmax())
    return np.array(weighted), np.array(plain)


@pytest.mark.parametrize(("k", "batch"), [(1, 64), (5, 7), (20, 1000)])
def test_equals_the_definition(k, batch):
    random = np.random.default_rng(1)
    centres = random.normal(size=(4, 6))
    labels = random.integers(0, 4, 90)
    train = centres[labels] + random.normal(size=(90, 6))
    test = centres[random.integers(0, 4, 33)] + random.normal(size=(33, 6))
    expected = by_definition(train, labels, test, k, 0.07)
    found = knn_predict(
        torch.from_numpy(train),
        torch.from_numpy(labels),
        torch.from_numpy(test),
        k=k,
        batch_size=batch,
    )
    assert np.array_equal(found.weighted.numpy(), expected[0])
    assert np.array_equal(found.plain.numpy(), expected[1])


def test_length_of_a_feature_does_not_matter():
    train = torch.randn(40, 5)
    labels = torch.arange(40) % 3
    test = torch.randn(20, 5)
    scale = torch.rand(20, 1) + 0.1
    plain = knn_predict(train, labels, test, k=5).weighted
    assert torch.equal(knn_predict(train, labels, 7 * test * scale, k=5).weighted, plain)


def test_tiny_temperature_is_the_nearest_neighbour():
    train, labels, test = torch.randn(50, 4), torch.arange(50) % 5, torch.randn(30, 4)
    sharp = knn_predict(train, labels, test, k=20, temperature=1e-4).weighted
    assert torch.equal(sharp, knn_predict(train, labels, test, k=1).plain)


def test_no_test_rows():
    found = knn_predict(
        torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), torch.randn(0, 3), k=1
    )
    assert found.weighted.shape == (0,)
    assert found.weighted.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 21}, "k: expected 1 to 20"),
        ({"k": 0}, "k: expected 1 to 20"),
        ({"temperature": 0.0}, "temperature: expected a positive"),
        ({"test": torch.zeros(2, 4)}, r"test: expected \[M, 3\]"),
        ({"train_labels": torch.zeros(19, dtype=torch.int64)}, "one label a row"),
        ({"train_labels": torch.full((20,), -1)}, "class indices from 0"),
    ],
)
def test_refusals(change, message):
    arguments = {
        "train": torch.randn(20, 3),
        "train_labels": torch.zeros(20, dtype=torch.int64),
        "test": torch.randn(2, 3),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        knn_predict(**arguments)
