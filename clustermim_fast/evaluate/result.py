"""Accuracies as JSON-ready rows with intervals, and the gains between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import accuracy_interval, gain_interval
from .rows import Subject

__all__ = ["Row", "assemble", "score"]

Row = dict[str, Any]


def score(correct: NDArray[np.bool_]) -> Row:
    """Accuracy of correct [seeds, N], percent, with its 95 % interval over the N test images.

    Several seeds: of the mean over them, with the standard deviation between seeds, which that
    interval does not cover.
    """
    accuracy, low, high = accuracy_interval(correct.mean(0))
    row: Row = {"accuracy_percent": accuracy, "interval95_percent": [low, high]}
    if len(correct) > 1:
        by_seed = 100 * correct.mean(1)
        row["seed_accuracies_percent"] = by_seed.tolist()
        row["seed_deviation_points"] = float(by_seed.std(ddof=1))
    return row


def assemble(
    kind: str,
    subject: Subject,
    rows: list[Row],
    correct: Mapping[str, NDArray[np.bool_]],
    settings: Mapping[str, Any],
    pool: str,
    seconds: float,
) -> dict[str, Any]:
    """The result of an evaluation; "gain_points" of the first row over each other, paired.

    correct: [seeds, N] by the row's name, the first row's first.
    """
    means = {name: hits.mean(0) for name, hits in correct.items()}
    first = next(iter(means.values()))
    gains = {}
    for name, other in list(means.items())[1:]:
        gain, half_width = gain_interval(first, other)
        gains[name] = {"gain": gain, "half_width95": half_width}
    labels = subject.test.labels.numpy()
    return {
        "kind": kind,
        "pool": pool,
        "settings": dict(settings),
        "train_images": len(subject.train.labels),
        "test_images": len(labels),
        "classes": len(subject.class_names),
        "majority_percent": 100 * int(np.bincount(labels).max()) / len(labels),
        "rows": rows,
        "gain_points": gains,
        "notes": list(subject.notes),
        "seconds": seconds,
        **subject.about,
    }
