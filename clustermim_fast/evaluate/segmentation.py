"""Linear segmentation on frozen patch features: one linear classifier of patches, by mean IoU.

The classifier is a multinomial logistic regression on standardised features of the patches; a patch
counts for each of its classes by the share of its pixels, so that the loss is the cross-entropy of
pixels under logits that are constant in a patch. Predictions are logits between patch centres by
bilinear interpolation, as in DINOv2's linear evaluation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from .features import Images, normalise
from .intervals import BOOTSTRAP_RESAMPLES
from .tokens import TokenSource

__all__ = ["Masked", "class_iou", "confusion", "pixel_patches", "segment"]

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
IGNORED = 255
Patches = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]


class Masked(Images, Protocol):
    """Images with masks; `clustermim_fast.data.MaskedImages` is one."""

    def masks(self, indices: Tensor) -> Tensor:
        """uint8 [B, H, W] of class indices, 255 where none, for int64 indices [B]."""
        ...


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Pixels by true and predicted class, int64 [classes, classes]; true 255 does not count."""
    counted = truth != IGNORED
    pairs = truth[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def class_iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class from its confusion [..., C, C]: float64 [..., C].

    TP / (TP + FP + FN); NaN for classes that are neither there nor predicted.
    """
    matrix = matrix.double()
    hit = matrix.diagonal(dim1=-2, dim2=-1)
    return hit / (matrix.sum(-1) + matrix.sum(-2) - hit)


def pixel_patches(
    grid: tuple[int, int], mean: Sequence[float], std: Sequence[float], side: int = 8
) -> Patches:
    """Patches of normalised pixels, averaged to at most side x side: what features must beat."""

    def patches(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        rows, columns = grid
        height, width = (min(side, s // n) for s, n in zip(images.shape[-2:], grid, strict=True))
        small = F.adaptive_avg_pool2d(
            normalise(images, mean, std), (rows * height, columns * width)
        )
        cells = small.unflatten(3, (columns, width)).unflatten(2, (rows, height))
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), grid

    return patches


@dataclass(frozen=True)
class _Fit:
    scaler: StandardScaler
    model: LogisticRegression
    classes: int

    def logits(self, rows: Tensor) -> Tensor:
        """[N, D] -> float32 [N, classes]; a class without a training pixel is never the largest."""
        scores = self.model.decision_function(self.scaler.transform(rows.numpy()))
        if scores.ndim == 1:  # two classes: scikit-learn gives the difference
            scores = np.stack([-scores / 2, scores / 2], 1)
        full = torch.full((len(rows), self.classes), -1e4)
        full[:, torch.from_numpy(self.model.classes_)] = torch.from_numpy(scores).float()
        return full


def segment(
    sources: dict[str, TokenSource | Patches],
    train: Masked,
    test: Masked,
    *,
    penalties: Sequence[float] = PENALTIES,
    held_out: float = 0.2,
    max_patches: int = 100_000,
    max_iter: int = 200,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean IoU of a linear classifier on the patches of each source, the first one compared.

    The penalty is the one with the best mean IoU on a held-out share of the training images; the
    model is then fitted on all of them, at most ``max_patches`` random patches. The test masks are
    read once. Returns a JSON-ready dict; each row has miou_percent (over classes that occur or are
    predicted), its 95 % interval (bootstrap over test images), pixel_accuracy_percent and
    iou_percent by class. Raises ValueError for masks with fewer than two classes, or two images.
    """
    if len(train) < 2:
        raise ValueError(f"data: expected at least 2 training images, got {len(train)}")
    classes = 1 + max(_largest(part, batch_size) for part in (train, test))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train)))
    checked = max(1, round(held_out * len(train)))
    check, fit = order[:checked], order[checked:]
    rows = []
    for name, source in sources.items():
        patches = _patches_of(source)
        # The network runs twice over the checked images and once over the others, however many
        # penalties there are.
        share = -(-max_patches * len(fit) // len(order))
        some = _rows(patches, train, fit, classes, batch_size, share, seed)
        others = _rows(patches, train, check, classes, batch_size, max_patches - share, seed)
        scores = {}
        if len(penalties) > 1:
            tried = [_fit(*some, penalty, classes, max_iter) for penalty in penalties]
            found = _confusions(patches, tried, train, check, classes, batch_size).sum(1)
            means = class_iou(found).nanmean(-1).tolist()
            scores = dict(zip(penalties, means, strict=True))
        best = max(scores, key=lambda penalty: scores[penalty]) if scores else penalties[0]
        features, shares = (np.concatenate(pair) for pair in zip(some, others, strict=True))
        final = _fit(features, shares, best, classes, max_iter)
        (each,) = _confusions(patches, [final], test, torch.arange(len(test)), classes, batch_size)
        rows.append({"name": name, **_score(each, seed), "penalty": best,
                     "held_out_miou_percent": {f"{p:g}": 100 * s for p, s in scores.items()},
                     "width": features.shape[1]})  # fmt: skip
    return {"kind": "segment", "classes": classes, "train_images": len(train),
            "test_images": len(test), "settings": {"penalties": list(penalties), "seed": seed,
            "max_patches": max_patches, "max_iter": max_iter}, "rows": rows}  # fmt: skip


def _patches_of(source: TokenSource | Patches) -> Patches:
    if not isinstance(source, TokenSource):
        return source
    tokens = source

    def patches(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens.encoder.eval().to(tokens.device)
        with torch.no_grad():
            found = tokens.batch(images)
        return found.patches.float().cpu(), found.grid

    return patches


def _largest(part: Masked, batch_size: int) -> int:
    found = {int(value) for ids in _batches(len(part), batch_size)
             for value in part.masks(ids).unique()} - {IGNORED}  # fmt: skip
    if len(found) < 2:
        raise ValueError(f"masks: expected at least two classes, got {sorted(found) or 'none'}")
    return max(found)


def _batches(count: int, size: int) -> Iterator[Tensor]:
    yield from torch.arange(count).split(size)


def _rows(
    patches: Patches, part: Masked, ids: Tensor, classes: int, size: int, most: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features [N, D] of random patches of images ``ids``, and shares [N, classes] of classes."""
    random = np.random.default_rng(seed)
    features, shares = [], []
    for some in ids.split(size):
        tokens, grid = patches(part.images(some))
        one_hot = F.one_hot(part.masks(some).long().clamp_max(classes), classes + 1)[..., :classes]
        share = F.adaptive_avg_pool2d(one_hot.permute(0, 3, 1, 2).float(), grid)
        own = share.flatten(2).mT.flatten(0, 1)
        wanted = -(-most * len(some) // len(ids))
        keep = torch.from_numpy(random.permutation(len(own))[:wanted])
        features.append(tokens.flatten(0, 1)[keep])
        shares.append(own[keep])
    return torch.cat(features).numpy(), torch.cat(shares).numpy()


def _fit(
    x: NDArray[np.float32], shares: NDArray[np.float32], penalty: float, classes: int, steps: int
) -> _Fit:
    row, label = np.nonzero(shares)
    if len(np.unique(label)) < 2:
        raise ValueError("masks: the training patches have fewer than two classes")
    scaler = StandardScaler().fit(x)
    weight = shares[row, label]
    model = LogisticRegression(C=1 / (penalty * float(weight.sum())), max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(x)[row], label, sample_weight=weight)
    return _Fit(scaler, model, classes)


def _confusions(
    patches: Patches, fits: Sequence[_Fit], part: Masked, ids: Tensor, classes: int, size: int
) -> Tensor:
    """Confusion of each image by each fit, int64 [fits, images, classes, classes]."""
    found: list[list[Tensor]] = [[] for _ in fits]
    for some in ids.split(size):
        tokens, grid = patches(part.images(some))
        truth = part.masks(some)
        for fit, matrices in zip(fits, found, strict=True):
            logits = fit.logits(tokens.flatten(0, 1)).view(len(some), *grid, classes)
            logits = F.interpolate(
                logits.permute(0, 3, 1, 2), truth.shape[-2:], mode="bilinear", align_corners=False
            )
            pairs = zip(truth, logits.argmax(1), strict=True)
            matrices += [confusion(t, p, classes) for t, p in pairs]
    return torch.stack([torch.stack(matrices) for matrices in found])


def _score(each: Tensor, seed: int) -> dict[str, Any]:
    whole = each.sum(0)
    iou = class_iou(whole)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(0, BOOTSTRAP_RESAMPLES, 50):
        times = random.multinomial(len(each), np.full(len(each), 1 / len(each)), 50)
        counts = torch.from_numpy(times).double() @ each.double().flatten(1)
        drawn.append(class_iou(counts.unflatten(1, whole.shape)).nanmean(-1))
    low, high = torch.cat(drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return {
        "miou_percent": 100 * float(iou.nanmean()),
        "interval95_percent": [100 * float(low), 100 * float(high)],
        "pixel_accuracy_percent": 100 * float(whole.diagonal().sum() / whole.sum()),
        "iou_percent": [None if bool(v.isnan()) else 100 * float(v) for v in iou],
    }
