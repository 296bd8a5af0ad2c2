"""Which rows of a labelled training set are held out to choose hyperparameters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

__all__ = ["hold_out"]


def hold_out(
    labels: NDArray[np.int64], share: float, seed: int, choosing: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows to fit on, rows to check on): a random ``share`` by class, where each has enough rows.

    ``choosing`` names what is chosen there. Raises ValueError where no two classes are left to fit.
    """
    counts = np.unique(labels, return_counts=True)[1]
    checks = int(np.ceil(share * len(labels)))
    if not 0 < share < 1 or len(labels) - checks < 2:
        raise ValueError(
            f"train_labels: {len(labels)} images are too few to hold {share:g} of them out for "
            f"choosing the {choosing}; pass one {choosing} or more images"
        )
    # Every class needs a row on both sides to be stratified; a set with single images is split
    # freely.
    fits = counts.min() >= 2 and min(checks, len(labels) - checks) >= len(counts)
    fit, check = train_test_split(
        np.arange(len(labels)),
        test_size=share,
        random_state=seed,
        stratify=labels if fits else None,
    )
    if len(np.unique(labels[fit])) < 2:
        raise ValueError(
            f"train_labels: {len(labels)} images are too few to hold some out for choosing the "
            f"{choosing}; pass one {choosing} or more images"
        )
    return fit, check
