"""Images from a loader: checked batches, and a sample of patches over a whole pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from clustermim_fast.tokenizers.image_rows import ImageRows, PatchSettings
from clustermim_fast.tokenizers.kmeans_init import RandomState
from clustermim_fast.tokenizers.kmeans_report import Progress
from clustermim_fast.tokenizers.pixel_settings import check_channels

# Un-normalised pixels lie in [0, 1]; interpolation may overshoot a little.
LOWEST, HIGHEST = -0.5, 1.5
CHECK_VALUES = 1 << 22


def check_images(images: torch.Tensor, settings: PatchSettings, where: str) -> torch.Tensor:
    """Refuse what is not a batch of un-normalised images; ``where`` names it in the message."""
    accepted = images.dtype == torch.uint8 or images.is_floating_point()
    if images.dim() != 4 or not accepted:
        got = f"{images.dtype} {list(images.shape)}"
        expected = "uint8 or floating [B, C, H, W]"
        raise TypeError(f"PixelTokenizer.fit: {where} must be {expected}, got {got}")
    p = settings.patch_size
    height, width = images.shape[2:]
    if height % p or width % p:
        raise ValueError(
            f"PixelTokenizer.fit: {where} are {height} x {width} pixels, not multiples of "
            f"patch_size = {p}; crop or resize them"
        )
    check_channels(settings, images.shape[1])
    if images.dtype == torch.uint8 or not images.numel():
        return images
    size = max(1, CHECK_VALUES // images[:1].numel())
    for start in range(0, len(images), size):
        part = images[start : start + size]
        low, high = (float(v) for v in torch.aminmax(part))
        if not (low >= LOWEST and high <= HIGHEST):  # written so that NaN fails
            _refuse_values(part, start, low, high, where)
    return images


def _refuse_values(part: torch.Tensor, start: int, low: float, high: float, where: str) -> None:
    finite = torch.isfinite(part).flatten(1).all(dim=1)
    if not bool(finite.all()):
        first = start + int(torch.nonzero(~finite)[0])
        raise ValueError(
            f"PixelTokenizer.fit: {where} contain NaN or infinity, first in image {first}"
        )
    raise ValueError(
        f"PixelTokenizer.fit: float {where} must lie in [0, 1] before normalisation, got values "
        f"from {low:.4g} to {high:.4g}. If mean and std are already applied, undo that and pass "
        "them as mean= and std= (the tokenizer stores and applies them; later call it with "
        "normalized=True). If these are pixels in 0..255, pass them as uint8 or divide by 255"
    )


class ImageStream:
    """Any iterable of image batches that can be iterated again and again."""

    def __init__(
        self,
        loader: Iterable[Any],
        settings: PatchSettings,
        metric: str,
        device: torch.device | None,
    ) -> None:
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise TypeError(
                "PixelTokenizer.fit: images_or_loader must be a tensor [N, C, H, W] or an iterable "
                f"of image batches, got {type(loader).__name__}"
            )
        if isinstance(loader, Iterator):
            raise TypeError(
                "PixelTokenizer.fit: images_or_loader is an iterator, which ends after one pass, "
                "but several are needed; pass a DataLoader, a list, or an object with __iter__"
            )
        self._loader, self._settings = loader, settings
        self._metric, self._device = metric, device

    def warn_if_sequential(self) -> None:
        """A DataLoader in file order sees one class after another."""
        sampler = getattr(self._loader, "sampler", None)
        if isinstance(sampler, torch.utils.data.SequentialSampler):
            warnings.warn(
                "PixelTokenizer.fit: the DataLoader does not shuffle; images sorted by class pull "
                "mini-batch centroids from class to class. Pass shuffle=True",
                UserWarning,
                stacklevel=5,
            )

    def passes(self) -> Iterator[ImageRows]:
        """One pass: each batch as rows."""
        number = -1
        for number, batch in enumerate(self._loader):
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(images, torch.Tensor):
                raise TypeError(
                    "PixelTokenizer.fit: the loader must give image tensors or tuples that start "
                    f"with one, got {type(images).__name__}"
                )
            images = images if self._device is None else images.to(self._device)
            check_images(images, self._settings, f"images of batch {number}")
            if len(images):
                yield ImageRows(images, self._settings, self._metric)
        if number < 0:
            raise ValueError("PixelTokenizer.fit: the loader gave no batch")

    def sample(
        self, size_for: Callable[[int], int], random: RandomState, bar: Progress
    ) -> tuple[torch.Tensor, int]:
        """Rows [<= size, D] drawn evenly from one whole pass (reservoir), and how many passed."""
        kept: torch.Tensor | None = None
        size, seen = 0, 0
        for batch in self.passes():
            if kept is None:
                size = size_for(batch.dim)
                kept = torch.empty(0, batch.dim, device=batch.device)
            if batch.dim != kept.shape[1]:
                raise ValueError(
                    f"PixelTokenizer.fit: batches differ: {kept.shape[1]} values a patch, then "
                    f"{batch.dim}"
                )
            # Row number t (from 0) takes place floor(u * (t + 1)) if that lies in the reservoir.
            number = seen + np.arange(batch.num_rows)
            place = (random.random_sample(batch.num_rows) * (number + 1)).astype(np.int64)
            place = np.where(number < size, number, place)
            # Several rows may draw one place; the last keeps it.
            index = np.flatnonzero(place < size)[::-1]
            target, first = np.unique(place[index], return_index=True)
            rows = batch.take(index[first])
            if len(kept) < size:
                grown = torch.empty(
                    min(size, seen + batch.num_rows), batch.dim, device=batch.device
                )
                grown[: len(kept)] = kept
                kept = grown
            kept[torch.from_numpy(target).to(kept.device)] = rows
            seen += batch.num_rows
            bar.advance(patches=seen)
        if kept is None:
            raise ValueError("PixelTokenizer.fit: the loader gave no image")
        return kept, seen
