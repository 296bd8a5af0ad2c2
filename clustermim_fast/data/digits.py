"""The built-in set "digits": 1,797 real handwritten digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clustermim_fast.data.folder import held_out

DIGITS_SIZE = 32
_TEST_SHARE = 0.2


def load_digits(split: str) -> tuple[Tensor, npt.NDArray[np.int64], list[str]]:
    """The digits as uint8 [N, 3, 32, 32], their labels int64 [N] and the class names.

    8 x 8 pixels of 0..16 are scaled to 0..255, resized bilinearly and repeated over three channels.
    split: "train" (80 %), "test" (20 %, stratified, always the same) or "all".
    """
    from sklearn.datasets import load_digits as load_sklearn_digits

    bunch = load_sklearn_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] * (255.0 / 16.0)
    large = torch.nn.functional.interpolate(
        small, size=(DIGITS_SIZE, DIGITS_SIZE), mode="bilinear", align_corners=False
    )
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = bunch.target.astype(np.int64)
    if split != "all":
        test = held_out(labels, len(labels), _TEST_SHARE)
        keep = np.flatnonzero(test if split == "test" else ~test)
        images, labels = images[torch.from_numpy(keep)], labels[keep]
    return images, labels, [str(digit) for digit in range(10)]
