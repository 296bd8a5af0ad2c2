"""`evaluate knn` and `evaluate linear`: the rows of rows.py through a classifier, as one result
with intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .knn import knn_predict
from .linear import PENALTIES, linear_predict
from .result import Row, assemble, score
from .rows import Subject, feature_rows

__all__ = ["FeatureOptions", "knn", "linear"]


@dataclass(frozen=True)
class FeatureOptions:
    """How features are computed and shown; none of it is tuned on results."""

    pool: str = "mean"
    batch_size: int = 256
    device: str = "cpu"
    cache_dir: Path | None = None
    progress: bool = False


def knn(
    subject: Subject,
    *,
    k: int = 20,
    temperature: float = 0.07,
    options: FeatureOptions | None = None,
) -> dict[str, Any]:
    """k-nearest-neighbour accuracy (cosine, weighted by exp(similarity / temperature)) of each row.

    Returns a JSON-ready dict: "rows" with accuracy_percent, interval95_percent and
    plain_accuracy_percent, "gain_points" of the first row over each other one. Raises ValueError
    as `knn_predict` does.
    """
    options = options or FeatureOptions()

    def classify(train: Tensor, test: Tensor) -> tuple[NDArray[np.int64], Row]:
        predicted = knn_predict(
            train,
            subject.train.labels,
            test,
            k=k,
            temperature=temperature,
            progress=options.progress,
        )
        plain = 100 * float((predicted.plain == subject.test.labels).double().mean())
        return predicted.weighted.numpy(), {"plain_accuracy_percent": plain}

    return _evaluate("knn", subject, classify, {"k": k, "temperature": temperature}, options)


def linear(
    subject: Subject,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    max_iter: int = 500,
    seed: int = 0,
    options: FeatureOptions | None = None,
) -> dict[str, Any]:
    """Accuracy of a logistic regression on the frozen features of each row.

    Returns a dict like `knn`'s; every row also has the penalty and how it scored on the part of
    the training images that was held out to choose it. Raises ValueError as `linear_predict` does.
    """
    options = options or FeatureOptions()

    def classify(train: Tensor, test: Tensor) -> tuple[NDArray[np.int64], Row]:
        fit = linear_predict(
            train,
            subject.train.labels,
            test,
            penalties=penalties,
            max_iter=max_iter,
            seed=seed,
            progress=options.progress,
        )
        held_out = {f"{penalty:g}": 100 * score for penalty, score in fit.held_out_accuracy.items()}
        return fit.predicted, {
            "penalty": fit.penalty,
            "held_out_train_accuracy_percent": held_out,
            "iterations": fit.iterations,
            "converged": fit.converged,
            "fit_seconds": fit.seconds,
        }

    settings = {"penalties": list(penalties), "max_iter": max_iter, "seed": seed}
    return _evaluate("linear", subject, classify, settings, options)


def _evaluate(
    kind: str,
    subject: Subject,
    classify: Callable[[Tensor, Tensor], tuple[NDArray[np.int64], Row]],
    settings: dict[str, Any],
    options: FeatureOptions,
) -> dict[str, Any]:
    start = time.perf_counter()
    labels = subject.test.labels.numpy()
    rows: list[Row] = []
    correct: dict[str, NDArray[np.bool_]] = {}
    features = feature_rows(
        subject,
        pool=options.pool,
        batch_size=options.batch_size,
        device=options.device,
        cache_dir=options.cache_dir,
        progress=options.progress,
    )
    for name, train, test in features:
        predicted, details = classify(train, test)
        correct[name] = (predicted == labels)[None]
        rows.append({"name": name, "dim": train.shape[1], **score(correct[name]), **details})
    seconds = time.perf_counter() - start
    return assemble(kind, subject, rows, correct, settings, options.pool, seconds)
