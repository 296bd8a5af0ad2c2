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
from .shots import check_seeds, draw_shots

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
    shots: str = "",
    seeds: int = 1,
    seed: int = 0,
    options: FeatureOptions | None = None,
) -> dict[str, Any]:
    """k-nearest-neighbour accuracy (cosine, weighted by exp(similarity / temperature)) of each row.

    ``shots`` ("10%" or "5" of each class; "" all) leaves some of the training images; ``seeds``
    draws as many times, from ``seed`` on.

    Returns a JSON-ready dict: "rows" with accuracy_percent, interval95_percent and
    plain_accuracy_percent, "gain_points" of the first row over each other one. Raises ValueError
    as `knn_predict` does.
    """
    options = options or FeatureOptions()

    if seeds > 1 and not shots:
        raise ValueError("seeds: kNN on all images is the same each time; give shots= with seeds=")

    def classify(
        train: Tensor, labels: Tensor, test: Tensor, _seed: int
    ) -> tuple[NDArray[np.int64], Row]:
        predicted = knn_predict(
            train,
            labels,
            test,
            k=k,
            temperature=temperature,
            progress=options.progress,
        )
        plain = 100 * float((predicted.plain == subject.test.labels).double().mean())
        return predicted.weighted.numpy(), {"plain_accuracy_percent": plain}

    settings = {"k": k, "temperature": temperature, "shots": shots, "seeds": seeds, "seed": seed}
    return _evaluate("knn", subject, classify, settings, options)


def linear(
    subject: Subject,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    max_iter: int = 500,
    shots: str = "",
    seeds: int = 1,
    seed: int = 0,
    options: FeatureOptions | None = None,
) -> dict[str, Any]:
    """Accuracy of a logistic regression on the frozen features of each row.

    ``shots`` as in `knn`; ``seeds`` repeats it with other images held out (and drawn), from
    ``seed`` on.

    Returns a dict like `knn`'s; every row also has the penalty and how it scored on the part of
    the training images that was held out to choose it. Raises ValueError as `linear_predict` does.
    """
    options = options or FeatureOptions()

    def classify(
        train: Tensor, labels: Tensor, test: Tensor, fit_seed: int
    ) -> tuple[NDArray[np.int64], Row]:
        fit = linear_predict(
            train,
            labels,
            test,
            penalties=penalties,
            max_iter=max_iter,
            seed=fit_seed,
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

    settings = {
        "penalties": list(penalties),
        "max_iter": max_iter,
        "shots": shots,
        "seeds": seeds,
        "seed": seed,
    }
    return _evaluate("linear", subject, classify, settings, options)


def _evaluate(
    kind: str,
    subject: Subject,
    classify: Callable[[Tensor, Tensor, Tensor, int], tuple[NDArray[np.int64], Row]],
    settings: dict[str, Any],
    options: FeatureOptions,
) -> dict[str, Any]:
    start = time.perf_counter()
    check_seeds(settings["seeds"], len(subject.train.labels))
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    picks = [draw_shots(subject.train.labels, settings["shots"], seed) for seed in seeds]
    truth = subject.test.labels.numpy()
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
        fits = [
            classify(train[pick], subject.train.labels[pick], test, seed)
            for pick, seed in zip(picks, seeds, strict=True)
        ]
        correct[name] = np.stack([predicted == truth for predicted, _ in fits])
        details = {key: [more[key] for _, more in fits] for key in fits[0][1]}
        if len(fits) == 1:
            details = fits[0][1]
        rows.append({"name": name, "dim": train.shape[1], **score(correct[name]), **details})
    seconds = time.perf_counter() - start
    result = assemble(kind, subject, rows, correct, settings, options.pool, seconds)
    return result | {"train_images": len(picks[0])}
