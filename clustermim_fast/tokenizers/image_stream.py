"""Images from a loader: checked batches, and a sample of patches over a whole pass."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clustermim_fast.counter_rng import STREAM_KMEANS, bits
from clustermim_fast.ops._images import size_remedy
from clustermim_fast.ranks import Alone
from clustermim_fast.tokenizers.image_rows import PatchRows, PatchSettings
from clustermim_fast.tokenizers.kmeans_report import Progress
from clustermim_fast.tokenizers.pixel_settings import check_channels

# Un-normalised pixels lie in [0, 1]; interpolation may overshoot a little.
LOWEST, HIGHEST = -0.5, 1.5
CHECK_VALUES = 1 << 22
COLUMNS = 64


def check_images(images: torch.Tensor, settings: PatchSettings, where: str) -> torch.Tensor:
    """Refuse what is not a batch of un-normalised images; ``where`` names it in the message."""
    accepted = images.dtype == torch.uint8 or images.is_floating_point()
    if images.dim() != 4 or not accepted:
        got = f"{images.dtype} {list(images.shape)}"
        expected = "uint8 or floating [B, C, H, W]"
        raise TypeError(f"tokenizer fit: {where} must be {expected}, got {got}")
    p = settings.patch_size
    height, width = images.shape[2:]
    if height % p or width % p:
        raise ValueError(
            f"tokenizer fit: {where} are {height} x {width} pixels, not multiples of "
            f"patch_size = {p}; {size_remedy(images)}"
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
        raise ValueError(f"tokenizer fit: {where} contain NaN or infinity, first in image {first}")
    raise ValueError(
        f"tokenizer fit: float {where} must lie in [0, 1] before normalisation, got values "
        f"from {low:.4g} to {high:.4g}. If mean and std are already applied, undo that and pass "
        "them as mean= and std= (the tokenizer stores and applies them; later call it with "
        "normalized=True). If these are pixels in 0..255, pass them as uint8 or divide by 255"
    )


class ImageStream:
    """Any iterable of image batches that can be iterated again and again.

    ``open_rows`` checks a batch, which its second argument names in messages, and makes its rows.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        open_rows: Callable[[torch.Tensor, str], PatchRows],
        device: torch.device | None,
    ) -> None:
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise TypeError(
                "tokenizer fit: images_or_loader must be a tensor [N, C, H, W] or an iterable "
                f"of image batches, got {type(loader).__name__}"
            )
        if isinstance(loader, Iterator):
            raise TypeError(
                "tokenizer fit: images_or_loader is an iterator, which ends after one pass, "
                "but several are needed; pass a DataLoader, a list, or an object with __iter__"
            )
        self._loader, self._open_rows, self._device = loader, open_rows, device
        self._seen: torch.Tensor | None = None

    def warn_if_sequential(self) -> None:
        """A DataLoader in file order sees one class after another."""
        sampler = getattr(self._loader, "sampler", None)
        if isinstance(sampler, torch.utils.data.SequentialSampler):
            warnings.warn(
                "tokenizer fit: the DataLoader does not shuffle; images sorted by class pull "
                "mini-batch centroids from class to class. Pass shuffle=True",
                UserWarning,
                stacklevel=7,
            )

    def passes(self) -> Iterator[PatchRows]:
        """One pass: each batch as rows."""
        number = -1
        for number, batch in enumerate(self._loader):
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(images, torch.Tensor):
                raise TypeError(
                    "tokenizer fit: the loader must give image tensors or tuples that start "
                    f"with one, got {type(images).__name__}"
                )
            images = images if self._device is None else images.to(self._device)
            rows = self._open_rows(images, f"images of batch {number}")
            self._seen = images[:0]
            if len(images):
                yield rows
        if number < 0:
            raise ValueError("tokenizer fit: the loader gave no batch")

    def no_images(self) -> PatchRows:
        """A batch of no image, after a pass."""
        assert self._seen is not None
        return self._open_rows(self._seen, "images")

    def sample(
        self, size_for: Callable[[int], int], seed: int, group: Alone, bar: Progress
    ) -> Sample:
        """Patches drawn evenly from one whole pass, over the loaders of all ranks of ``group``.

        Each patch has a key, a function of the seed, its image's pixels and its place; those of the
        lowest keys are the sample. So it does not depend on the order of the images, their batches
        or ranks. An image that comes twice counts once.
        """

        def read_own() -> tuple[_Lowest, int, bool]:
            kept: _Lowest | None = None
            exact, seen = True, 0
            for batch in self.passes():
                if kept is None:
                    kept = _Lowest(size_for(batch.dim), batch)
                if batch.dim != kept.rows.shape[1]:
                    raise ValueError(
                        f"tokenizer fit: batches differ: {kept.rows.shape[1]} values a patch, "
                        f"then {batch.dim}"
                    )
                kept.offer(batch, patch_keys(batch, seed))
                exact = exact and batch.exact
                seen += batch.num_rows
                bar.advance(patches=seen)
            if kept is None:
                raise ValueError("tokenizer fit: the loader gave no image")
            return kept, seen, exact

        kept, seen, exact = group.agree(read_own)
        total = int(group.each(np.array([seen])).sum())
        exact = bool(group.each(np.array([int(exact)])).all())
        return Sample(kept.of_all_ranks(group), total, exact)


@dataclass(frozen=True)
class Sample:
    """What a first pass over the loaders of all ranks found.

    Attributes:
        rows: [<= size, D] float32, patches from everywhere, the same on every rank.
        num_rows: patches that passed.
        exact: whether sums over all batches are integers, see ``Totals``.
    """

    rows: torch.Tensor
    num_rows: int
    exact: bool


def patch_keys(batch: PatchRows, seed: int) -> npt.NDArray[np.uint64]:
    """64 bits a patch [B * L]: equal for equal images at equal seeds."""
    pixels = batch.images.contiguous().view(torch.uint8).cpu().numpy()
    digests = [hashlib.blake2b(image, digest_size=8).digest() for image in pixels]
    images = np.frombuffer(b"".join(digests), dtype="<i8")
    # Epoch -1: the orders of batches are drawn from the same stream at 0, 1, ...
    return bits(seed, -1, images, STREAM_KMEANS, batch.patches_per_image).flatten()


class _Lowest:
    """The rows of the ``size`` lowest keys of all that were offered."""

    def __init__(self, size: int, like: PatchRows) -> None:
        self.size = size
        self.keys = np.empty(0, dtype=np.uint64)
        self.rows = torch.empty(0, like.dim, device=like.device)

    def offer(self, batch: PatchRows, keys: npt.NDArray[np.uint64]) -> None:
        """Take over the rows of ``batch`` whose ``keys`` are low enough."""
        if len(self.keys) == self.size:
            candidates = np.flatnonzero(keys < self.keys.max())
        else:
            candidates = np.arange(len(keys))
        fresh, first = np.unique(keys[candidates], return_index=True)
        is_new = ~np.isin(fresh, self.keys)
        fresh, index = fresh[is_new], candidates[first[is_new]]
        bound = np.sort(np.concatenate([self.keys, fresh]))[: self.size].max(initial=0)
        accepted = fresh <= bound
        fresh, index = fresh[accepted], index[accepted]
        places = np.flatnonzero(self.keys > bound)  # of rows that must go; then the end
        room = len(fresh) - len(places)
        if room > 0:
            places = np.append(places, np.arange(len(self.keys), len(self.keys) + room))
            self.keys = np.append(self.keys, np.empty(room, dtype=np.uint64))
            grown = torch.empty(len(self.keys), self.rows.shape[1], device=self.rows.device)
            grown[: len(self.rows)] = self.rows
            self.rows = grown
        self.keys[places] = fresh
        self.rows[torch.from_numpy(places).to(self.rows.device)] = batch.take(index)

    def of_all_ranks(self, group: Alone) -> torch.Tensor:
        """The rows of the lowest keys over all ranks, in the order of their keys."""
        every, first = np.unique(group.join(self.keys), return_index=True)
        every, first = every[: self.size], first[: self.size]
        # A key that several ranks have is the first one's.
        ends = np.cumsum(group.each(np.array([len(self.keys)]))[:, 0])
        owner = np.searchsorted(ends, first, side="right")
        mine = np.flatnonzero(owner == group.rank)
        place = first[mine] - (ends[group.rank] - len(self.keys))
        target, source = torch.from_numpy(mine), torch.from_numpy(place)
        enough = len(self.rows) >= len(every)
        out = self.rows if enough else torch.empty(len(every), self.rows.shape[1])
        out = out.to(self.rows.device)
        for column in range(0, out.shape[1], COLUMNS):  # a whole second copy would be too much
            part = slice(column, column + COLUMNS)
            block = torch.zeros_like(out[: len(every), part]).contiguous()
            block[target] = self.rows[source, part]
            out[: len(every), part] = group.fill(block)
        return out[: len(every)]
