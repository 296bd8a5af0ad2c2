"""Low-shot evaluation: a share of the labelled images, or a number of each class."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .features import Images

__all__ = ["Picked", "check_seeds", "draw_shots", "shots_label"]


def draw_shots(labels: Tensor, shots: str, seed: int) -> Tensor:
    """Rows of the training set to use, int64, ascending.

    Args:
        labels: int64 [N].
        shots: "" for all; "10%" of each class, rounded, at least one; "5" of each class.
        seed: of the draw.

    Raises:
        ValueError: another ``shots``, or a class that has fewer images.
    """
    _parse(shots)
    if not shots:
        return torch.arange(len(labels))
    random = torch.Generator().manual_seed(seed)
    rows = []
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0]
        count = _count(shots, len(own))
        if count > len(own):
            raise ValueError(
                f"shots: class {label} has {len(own)} training images, fewer than {count}; "
                "give a smaller number, or a share of each class (10%)"
            )
        rows.append(own[torch.randperm(len(own), generator=random)[:count]])
    return torch.cat(rows).sort().values


def shots_label(shots: str) -> str:
    """For a file's name: "10pct", "5_per_class"; "" for all."""
    if not shots:
        return ""
    return f"{shots[:-1]}pct" if shots.endswith("%") else f"{shots}_per_class"


def check_seeds(seeds: int, images: int) -> None:
    """Refuse a number of repetitions below 1 or above the number of training images."""
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    if seeds > images:
        raise ValueError(f"seeds: expected at most {images}, one a training image, got {seeds}")


class Picked:
    """Some images of a set, in the order of ``rows``."""

    def __init__(self, images: Images, rows: Tensor) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def images(self, indices: Tensor | Sequence[int]) -> Tensor:
        """As the set's own."""
        return self._images.images(self._rows[torch.as_tensor(indices)])


def _parse(shots: str) -> None:
    value = shots.removesuffix("%")
    number = float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else 0.0
    whole = shots.endswith("%") or number == int(number)
    if shots and not (number > 0 and whole and (number <= 100 or not shots.endswith("%"))):
        raise ValueError(
            f'shots: expected a share ("10%") or a number ("5") of each class, got {shots!r}'
        )


def _count(shots: str, available: int) -> int:
    if shots.endswith("%"):
        return max(1, round(float(shots[:-1]) / 100 * available))
    return int(float(shots))
