"""Linear probe on frozen features: standardise, then multinomial logistic regression
(scikit-learn).

The strength of the penalty is chosen on a part of the TRAINING images that is kept aside for it;
the model is then fitted on all of them. Nothing in this file ever sees a test label:
``linear_predict`` does not take any.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm

from .features import check_labelled
from .split import hold_out

__all__ = ["PENALTIES", "LinearPredictions", "linear_predict"]

# Wide enough that neither the 3,072 raw pixels of CIFAR-10 (best at 0.1 to 1) nor an untrained
# network's features (best at 1e-5) stop at an end of it.
PENALTIES = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Weights w of the squared norm beside the mean loss, strong to weak; C is 1 / (N w)."""


@dataclass(frozen=True)
class LinearPredictions:
    """Predicted class index of every test row, int64 [N_test], and how the penalty was chosen."""

    predicted: NDArray[np.int64]
    penalty: float
    held_out_accuracy: dict[float, float]
    iterations: int
    converged: bool
    seconds: float


def linear_predict(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
    held_out: float = 0.2,
    max_search_rows: int = 20_000,
    max_iter: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> LinearPredictions:
    """Fit on train [N, D] with train_labels [N], predict test [M, D].

    The penalty is the one of ``penalties`` with the best accuracy on a random ``held_out`` share
    of the training rows (equal scores: the strongest), searched on at most ``max_search_rows`` of
    them. Raises ValueError for disagreeing shapes, fewer than two classes or no rows to hold out.
    """
    check_labelled(train, train_labels, "train")
    start = time.perf_counter()
    x = train.float().cpu().numpy()
    y = train_labels.cpu().numpy()
    if len(np.unique(y)) < 2:
        raise ValueError(
            "train_labels: expected at least two classes, got one; nothing to tell apart"
        )
    scores: dict[float, float] = {}
    if len(penalties) > 1:
        rows = np.random.default_rng(seed).permutation(len(x))[:max_search_rows]
        strong_first = sorted(penalties, reverse=True)
        scores = _scores(x[rows], y[rows], strong_first, held_out, max_iter, seed, progress)
    best = max(scores, key=lambda penalty: scores[penalty]) if scores else float(penalties[0])
    scaler = StandardScaler().fit(x)
    model = _model(best, len(x), max_iter)
    _fit(model, scaler.transform(x), y)
    iterations = int(np.max(model.n_iter_))
    return LinearPredictions(
        predicted=model.predict(scaler.transform(test.float().cpu().numpy())).astype(np.int64),
        penalty=best,
        held_out_accuracy=scores,
        iterations=iterations,
        converged=iterations < max_iter,
        seconds=time.perf_counter() - start,
    )


def _scores(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    penalties: Sequence[float],
    held_out: float,
    max_iter: int,
    seed: int,
    progress: bool,
) -> dict[float, float]:
    """Accuracy of each penalty on a ``held_out`` share of the rows after a fit on the others."""
    fit_rows, check_rows = hold_out(y, held_out, seed, "penalty")
    scaler = StandardScaler().fit(x[fit_rows])
    fit_x, check_x = scaler.transform(x[fit_rows]), scaler.transform(x[check_rows])
    model = _model(penalties[0], len(fit_rows), max_iter)
    scores = {}
    # Strong to weak with a warm start: each fit begins next to its solution.
    for penalty in tqdm(penalties, "penalty", disable=not progress, leave=False):
        model.set_params(C=1 / (penalty * len(fit_rows)))
        _fit(model, fit_x, y[fit_rows])
        scores[penalty] = float(np.mean(model.predict(check_x) == y[check_rows]))
        # Two in a row below the best: from here on it only fits noise, and takes the longest to.
        if len(scores) > 2 and max(list(scores.values())[-2:]) < max(scores.values()):
            break
    return scores


def _model(penalty: float, rows: int, max_iter: int) -> LogisticRegression:
    return LogisticRegression(C=1 / (penalty * rows), max_iter=max_iter, warm_start=True)


def _fit(model: LogisticRegression, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    with warnings.catch_warnings():
        # Reaching max_iter is reported as `converged`: a weak penalty need not converge to be
        # compared.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
