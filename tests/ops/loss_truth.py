"""The masked losses by an independent formula in numpy float64, and what float32 may miss it by.

Shares no code with the ops, nor with torch: a loop over tokens, softmax and gradient written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np


@dataclass
class Truth:
    """Exact values, and for each a bound on the rounding error of float32 (float64) arithmetic.

    ``loss`` and ``d*`` are float64; ``*_bound`` have the same shapes. The bounds are the textbook
    ones: a sum of n products misses by at most (n + c) u times the sum of their absolute values,
    with c for what comes after the sum (the smoothing's part, a factor, the sums of chunks).
    """

    loss: np.ndarray
    dz: np.ndarray  # [N, K], zeros at tokens that do not count
    counted: np.ndarray  # [N] bool
    loss_bound: np.ndarray
    dz_bound: np.ndarray
    scale: np.ndarray  # [N] d objective / d loss of the row
    dx: np.ndarray | None = None
    dw: np.ndarray | None = None
    db: np.ndarray | None = None
    dx_bound: np.ndarray | None = None
    dw_bound: np.ndarray | None = None
    db_bound: np.ndarray | None = None
    correct: int = 0
    histogram: np.ndarray | None = None


def logits_truth(
    z: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    grad_output: Any = 1.0,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: np.ndarray | None = None,
    token_weight: np.ndarray | None = None,
    z_error: np.ndarray | float = 0.0,
    unit: float = 2.0**-24,
) -> Truth:
    """``z`` [N, K], ``target``, ``mask``, ``token_weight`` [N]; ``z_error``: how wrong z may be.

    exp(z - max) is taken for 0 where it would be subnormal.
    """
    z = np.asarray(z, np.float64)
    rows, classes = z.shape
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    tw = np.ones(rows) if token_weight is None else np.asarray(token_weight, np.float64)
    counted = np.zeros(rows, bool)
    row_loss, row_bound = np.zeros(rows), np.zeros(rows)
    slope, slope_bound = np.zeros((rows, classes)), np.zeros((rows, classes))
    total_weight = 0.0
    correct, histogram = 0, np.zeros(classes, np.int64)
    z_error = np.broadcast_to(z_error, z.shape)
    subnormal = 2.0**-1022 if unit < 2.0**-50 else 2.0**-126
    for n in range(rows):
        if target[n] == ignore_index or (mask is not None and not mask[n]):
            continue
        counted[n] = True
        y, row = int(target[n]), z[n]
        top = row.max()
        lse = top + np.log(np.exp(row - top).sum())
        p = np.exp(row - lse)
        soft = label_smoothing / classes * w
        hard = (1 - label_smoothing) * w[y]
        nll = lse - row
        row_loss[n] = hard * nll[y] + (soft[soft > 0] * nll[soft > 0]).sum()
        mass = hard + soft.sum()
        slope[n] = mass * p - soft
        slope[n, y] -= hard
        total_weight += tw[n] * w[y]
        best = int(np.argmax(row))
        correct += best == y
        histogram[best] += 1
        # The exponent misses by both logits' errors and the subtraction's; exp and sum add theirs.
        finite = np.isfinite(row)
        spread = top - row[finite].min()
        relative = 2 * z_error[n].max() + unit * (2 * spread + classes + 24)
        row_bound[n] = mass * relative + unit * 4 * (abs(row_loss[n]) + np.log(classes) + 1)
        # The smoothing's sum over the classes, of logits or of their distances to the largest.
        summed = np.maximum(abs(row), top - row)[finite]
        row_bound[n] += unit * (classes + 8) * (soft[finite] * summed).sum()
        slope_bound[n] = mass * (p * np.expm1(relative) + 4 * subnormal)
        slope_bound[n] += 8 * unit * (mass * p + soft)
        slope_bound[n, y] += 8 * unit * hard
    grad = np.asarray(grad_output, np.float64)
    if reduction == "none":
        loss, loss_bound = row_loss * tw, (row_bound + 2 * unit * abs(row_loss)) * tw
        scale = grad.reshape(-1) * tw if grad.ndim else np.full(rows, float(grad)) * tw
    else:
        divisor = total_weight if reduction == "mean" else 1.0
        with np.errstate(invalid="ignore"):
            loss = np.float64((row_loss * tw)[counted].sum()) / divisor if divisor else np.nan
        loss_bound = (row_bound * tw).sum() / divisor if divisor else 0.0
        loss_bound += 4 * unit * abs(loss) if np.isfinite(loss) else 0.0
        scale = tw * (float(grad) / divisor if divisor else 0.0)
    scale = np.where(counted, scale, 0.0)[:, None]
    return Truth(
        np.asarray(loss),
        scale * slope,
        counted,
        np.asarray(loss_bound),
        abs(scale) * (slope_bound + 4 * unit * abs(slope)),
        scale[:, 0],
        correct=correct,
        histogram=histogram,
    )


def linear_truth(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    target: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    unit: float = 2.0**-24,
    operand_unit: float = 0.0,
    softmax_unit: float = 0.0,
    terms: int | None = None,
    centred: bool = False,
    **options: Any,
) -> Truth:
    """``x`` [N, d] without prefix, ``w`` [K, d], ``b`` [K]; the options of :func:`logits_truth`.

    ``operand_unit``: the logits' gradient is rounded with this unit before it is multiplied for dX
    and dW (db is its sum before that), and subnormal float32 numbers are taken for 0. Rounding to
    nearest with p bits moves a value of [2^e, 2^(e+1)) by at most half a step, 2^(e-p), so the unit
    of bfloat16 (p = 8) is 2^-8: the 2^-9 at the binade's upper end does not hold at its lower one.
    ``softmax_unit``: p of every class but the target's is rounded with this unit before that, or by
    2^-40 at most where it is tiny (triton_softmax.py derives both).
    What is rounded leaves out the smoothing's constant part, which has no part in that error.

    ``terms``: additions one after the other in dW and db, where that is not the number of rows.
    ``centred``: smoothing's constant part of dW and db is the mean over classes of all else, taken
    off (cuda_few.py), which has the mean of its errors, and those of a sum of K.
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    bias = np.zeros(len(w)) if b is None else np.asarray(b, np.float64)
    counts = np.ones(len(x), bool) if mask is None else np.asarray(mask, bool)
    x = np.where(counts[:, None], x, 0.0)  # what stands at the others never matters
    z = x @ w.T + bias
    dim, classes = x.shape[1], len(w)
    terms = int(counts.sum()) if terms is None else terms
    flush = 2.0**-126 if operand_unit else 0.0
    finite_bias = np.where(np.isfinite(bias), abs(bias), 0.0)
    z_error = (dim + 4) * unit * (abs(x) @ abs(w).T + finite_bias)
    z_error += flush * (abs(x).sum(1, keepdims=True) + abs(w).sum(1) + dim)
    t = logits_truth(z, target, counts, unit=unit, z_error=z_error, **options)
    x = np.where(t.counted[:, None], x, 0.0)
    t.dx, t.dw, t.db = t.dz @ w, t.dz.T @ x, t.dz.sum(0)
    # The smoothing's constant part is summed apart from the rest.
    constant = (t.scale * options.get("label_smoothing", 0.0) / classes)[:, None]
    operand = abs(t.dz + constant)
    if softmax_unit:
        kept = softmax_unit * operand + 2.0**-40 * abs(t.scale)[:, None]
        kept[t.counted.nonzero()[0], target[t.counted]] = 0.0
        t.dz_bound = t.dz_bound + kept
    magnitude = operand + abs(constant)
    operand_error = t.dz_bound + operand_unit * (operand + t.dz_bound) + flush
    t.dx_bound = operand_error @ abs(w) + (classes + 8) * unit * (magnitude @ abs(w))
    t.dx_bound += flush * (magnitude.sum(1, keepdims=True) + classes)
    t.dw_bound = operand_error.T @ abs(x) + (terms + 8) * unit * (magnitude.T @ abs(x))
    t.dw_bound += flush * (magnitude.sum(0)[:, None] + terms)
    t.db_bound = t.dz_bound.sum(0) + (terms + 8) * unit * magnitude.sum(0) + flush * terms
    if centred and constant.any():
        t.dw_bound += (t.dw_bound + (classes + 4) * unit * (operand.T @ abs(x))).mean(0)
        t.db_bound += (t.db_bound + (classes + 4) * unit * operand.sum(0)).mean()
    return t


def pairwise(**factors: list[Any]) -> list[dict[str, Any]]:
    """Cases in which every pair of values of every two factors occurs, greedily few."""
    names = list(factors)
    missing = {
        (a, i, b, j)
        for a, b in combinations(names, 2)
        for i, j in product(range(len(factors[a])), range(len(factors[b])))
    }
    rng = np.random.default_rng(0)
    cases = []
    while missing:
        best, gained = None, -1
        ordered = sorted(missing)  # a set's own order changes from process to process
        for _ in range(60):
            a, i, b, j = ordered[rng.integers(len(ordered))]
            pick = {n: int(rng.integers(len(factors[n]))) for n in names} | {a: i, b: j}
            gain = sum(pick[a] == i and pick[b] == j for a, i, b, j in missing)
            if gain > gained:
                best, gained = pick, gain
        assert best is not None
        missing -= {m for m in missing if best[m[0]] == m[1] and best[m[2]] == m[3]}
        cases.append({n: factors[n][k] for n, k in best.items()})
    return cases
