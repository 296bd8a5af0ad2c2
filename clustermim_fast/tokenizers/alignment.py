"""Token-class alignment: how well tokens go with classes, before any pretraining.

All functions take a table ``counts`` [C, K], how often token k occurs in images of class c (see
:func:`token_class_counts`). All variants degenerate where K nears the number of patches: tokens
that occur once tell classes apart whatever they are. Look at the patches a token beside them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Float64 = npt.NDArray[np.float64]

# What each variant is, for tables: of all of them lower is better.
VARIANTS = {
    "default": "TCAS ((1/C^2) |R R^T - I|^2 of L2-normalised class rows; the formula is from "
    "knowledge of the paper, not re-read in print)",
    "A": "TCAS (reconstructed, variant A: mean cosine of two classes' token histograms)",
    "B": "TCAS (reconstructed, variant B: chance that patches of two classes share a token; falls "
    "with K alone)",
    "C": "TCAS (reconstructed, variant C: chance that two patches of one token differ in class)",
}

_ROWS = {"default": "l2", "A": "l2", "B": "l1", "C": "l1"}
_SIZES: dict[str, Callable[[Float64, int], Float64]] = {
    "l2": lambda table, axis: np.linalg.norm(table, axis=axis, keepdims=True),
    "l1": lambda table, axis: table.sum(axis=axis, keepdims=True),
    "none": lambda table, axis: np.ones((1, 1)),
}


def tcas(
    counts: Any,
    variant: str = "default",
    *,
    rows: str | None = None,
    columns: str = "none",
    pairs: str = "different",
    token_weight: str = "frequency",
    balance_classes: bool = False,
) -> float:
    """Token-class alignment similarity of a table [C, K]; lower is better, 0 is best.

    Args:
        counts: array or tensor [C, K]; classes without tokens are left out, with a warning.
        variant: the paper's text was not at hand, so a number must say which formula it is of
            (``VARIANTS`` has their names). With n the counts, P and R their rows normalised to sum
            1 and to length 1, Q their columns normalised to sum 1, s = P P^T:
            "default": (1/C^2) * |R R^T - I|_F^2, the mean square of the off-diagonal cosines times
            (C - 1) / C;
            "A": mean over pairs c != c' of the cosine s(c,c') / sqrt(s(c,c) s(c',c'));
            "B": mean over pairs of s(c,c'); not comparable between different K;
            "C": 1 - sum_k w_k sum_c Q(c,k)^2.
        rows: what each row is divided by, in all but "C": "l2", its length; "l1", its sum; "none".
            None: the variant's own, l1 for "B" and l2 for the others. "none" weighs classes by
            their patches and grows with their squares.
        columns: the same for each token's column, before that.
        pairs: "different" classes; or "all", each class with itself too (1 with rows of length 1).
        token_weight: w of "C": "frequency" of token k, or "uniform" over the tokens that occur.
        balance_classes: "C" of P instead of n, so that every class weighs the same (the others do
            that anyway).

    Raises:
        ValueError: not a table of counts, fewer than two classes with tokens, unknown choices.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
    if token_weight not in ("frequency", "uniform"):
        raise ValueError(f"token_weight must be 'frequency' or 'uniform', got {token_weight!r}")
    own = {"rows": rows or _ROWS[variant], "columns": columns, "pairs": pairs}
    for name, known in (
        ("rows", tuple(_SIZES)),
        ("columns", tuple(_SIZES)),
        ("pairs", ("different", "all")),
    ):
        if own[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {own[name]!r}")
    if variant == "C" and (rows, columns, pairs) != (None, "none", "different"):
        raise ValueError("rows, columns, pairs: variant C compares no pairs of rows; leave them")
    table = _present(counts)
    classes = len(table)
    if variant == "C":
        shares = _divided(table, "l1", 1)
        used = (shares if balance_classes else table)[:, table.any(axis=0)]
        frequency = used.sum(axis=0) / used.sum()
        weight = frequency if token_weight == "frequency" else np.ones_like(frequency)
        pure = np.square(used / used.sum(axis=0)).sum(axis=0)
        return float(1 - np.average(pure, weights=weight))
    histograms = _divided(_divided(table, columns, 0), own["rows"], 1)
    alike = histograms @ histograms.T
    counted = alike[~np.eye(classes, dtype=bool)] if pairs == "different" else alike
    if variant == "default":
        return float(np.square(counted).sum() / classes**2)
    return float(counted.mean())


def _divided(table: Float64, by: str, axis: int) -> Float64:
    """Rows (axis 1) or columns (0) over their size; a column of zeros stays."""
    size = _SIZES[by](table, axis)
    return table / np.where(size > 0, size, 1.0)


@dataclass(frozen=True)
class TokenStatistics:
    """What stands beside TCAS.

    Attributes:
        nmi: mutual information of token and class over the mean of their entropies, 0 to 1.
        purity: share of patches whose class is the commonest of their token.
        perplexity: exp of the entropy of the tokens' frequencies, 1 to K.
        dead: tokens that never occur.
        tokens: K; patches: how many were counted; classes: C with tokens.
        patches_per_token: of the smallest class, on average over K.
    """

    nmi: float
    purity: float
    perplexity: float
    dead: int
    tokens: int
    patches: int
    classes: int
    patches_per_token: float


def token_statistics(counts: Any) -> TokenStatistics:
    """The companions of TCAS, of the same table."""
    from scipy.stats import entropy
    from sklearn.metrics import mutual_info_score

    table = _present(counts)
    frequency, sizes = table.sum(axis=0), table.sum(axis=1)
    shared = float(mutual_info_score(None, None, contingency=table))
    spread = float(entropy(frequency) + entropy(sizes)) / 2
    return TokenStatistics(
        nmi=shared / spread,
        purity=float(table.max(axis=0).sum() / table.sum()),
        perplexity=float(np.exp(entropy(frequency))),
        dead=int((frequency == 0).sum()),
        tokens=table.shape[1],
        patches=round(float(table.sum())),
        classes=len(table),
        patches_per_token=float(sizes.min() / table.shape[1]),
    )


def _present(counts: Any) -> Float64:
    """The rows of classes that have tokens, as float64."""
    values = counts.detach().cpu().numpy() if isinstance(counts, torch.Tensor) else counts
    table: Float64 = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"counts must be a table [C, K] of classes by tokens, got {table.shape}")
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise ValueError("counts must be finite and >= 0: how often each token occurs in a class")
    empty = ~table.any(axis=1)
    if len(table) - empty.sum() < 2:
        raise ValueError(
            f"counts must have tokens in two classes at least, got {len(table) - empty.sum()} of "
            f"{len(table)}; use labelled images of more classes"
        )
    if empty.any():
        numbers = ", ".join(map(str, np.flatnonzero(empty)[:8]))
        warnings.warn(
            f"{empty.sum()} classes have no token and are left out: {numbers}",
            UserWarning,
            stacklevel=3,
        )
    return table[~empty]
