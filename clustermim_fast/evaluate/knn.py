"""Nearest-neighbour classification on frozen features: no training, so nothing to tune.

The weighted vote is the one of InstDisc and DINO: the k most similar training images by cosine
each vote for their label with the weight exp(similarity / temperature). The plain vote counts each
neighbour once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .features import check_labelled

__all__ = ["KNNPredictions", "knn_predict"]


@dataclass(frozen=True)
class KNNPredictions:
    """Predicted class index of every test row, int64 [N_test], by either vote."""

    weighted: Tensor
    plain: Tensor


@torch.no_grad()
def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 512,
    progress: bool = False,
) -> KNNPredictions:
    """Classify test rows by the labels of their nearest training rows under cosine similarity.

    train [N, D] and test [M, D] are floating, train_labels [N] holds class indices from 0.
    Equal votes go to the lowest class index. Peak memory beside the inputs: batch_size * N floats.
    Raises ValueError when shapes disagree, when k is outside [1, N] or temperature is not positive.
    """
    check_labelled(train, train_labels, "train")
    if test.ndim != 2 or test.shape[1] != train.shape[1]:
        raise ValueError(
            f"test: expected [M, {train.shape[1]}] features like train's, got {tuple(test.shape)}"
        )
    if not 1 <= k <= len(train):
        raise ValueError(
            f"k: expected 1 to {len(train)} (the number of training images), got {k}; "
            "pass a smaller k or more images"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    bank = F.normalize(train.float(), dim=1).T
    queries = F.normalize(test.float(), dim=1)
    classes = int(train_labels.max()) + 1
    weighted, plain = [], []
    for start in tqdm(range(0, len(queries), batch_size), "kNN", disable=not progress, leave=False):
        similarity, neighbour = (queries[start : start + batch_size] @ bank).topk(k, dim=1)
        votes = train_labels[neighbour]
        # float64, and the largest weight is 1: a temperature of 0.001 must not overflow.
        weight = ((similarity.double() - similarity[:, :1].double()) / temperature).exp()
        ballot = torch.zeros(len(votes), classes, dtype=torch.float64, device=votes.device)
        weighted.append(ballot.scatter_add(1, votes, weight).argmax(1))
        plain.append(ballot.scatter_add(1, votes, torch.ones_like(weight)).argmax(1))
    empty = torch.empty(0, dtype=torch.int64)
    return KNNPredictions(
        torch.cat(weighted) if weighted else empty, torch.cat(plain) if plain else empty
    )
