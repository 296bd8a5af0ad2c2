"""`open_images`: a folder or a built-in set to an `ImageSet` of crops and evaluation views."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clustermim_fast import ops
from clustermim_fast.data.augment import crop_params, evaluation_view
from clustermim_fast.data.cache import CacheStore, cache_listing, open_caches
from clustermim_fast.data.config import DataConfig
from clustermim_fast.data.digits import load_digits
from clustermim_fast.data.folder import list_folder
from clustermim_fast.data.store import Broken, FileStore, MemoryStore, estimate_bytes, load_files

IN_MEMORY_LIMIT = 2 * 1024**3
_STATS_SAMPLE = 4096


class ImageSet:
    """Images of one split, in a fixed order; indices are positions in it.

    Attributes:
        image_size: (H, W) of `images` and `crops`, pixels.
        num_channels: always 3.
        labels: int64 [N], or None where the folder tells no classes.
        class_names: names by label, or None.
        broken: files that could not be read and their reasons; they are not part of the set. A set
            read from disk on demand meets them later and replaces each by its next readable file.
        source: what was opened, for messages.
    """

    num_channels = 3

    def __init__(
        self,
        store: MemoryStore | FileStore | CacheStore,
        image_size: tuple[int, int],
        *,
        labels: npt.NDArray[np.int64] | None = None,
        class_names: list[str] | None = None,
        broken: list[Broken] | None = None,
        eval_crop: float | None = None,
        source: str = "",
        stats: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        if len(store) == 0:
            raise ValueError(f"data: none of the images of {source or 'the set'} can be read")
        self._store = store
        self.image_size = image_size
        self.labels = labels
        self.class_names = class_names
        self._broken = list(broken or [])
        self.eval_crop = eval_crop or (0.875 if min(image_size) >= 160 else 1.0)
        self.source = source
        self._stats = stats
        self._resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self._store)

    @property
    def broken(self) -> list[Broken]:
        return self._broken + self._store.broken

    @property
    def in_memory(self) -> bool:
        return self._store.in_memory

    @property
    def decoded(self) -> bool:
        """Whether the pixels are there, in memory or in a cache."""
        return not isinstance(self._store, FileStore)

    def to(self, device: torch.device) -> ImageSet:
        """The same set with its pixels on `device`, where its crops are then made.

        Raises ValueError where images are not of one size.
        """
        whole = self._store.uniform
        if whole is None:
            raise ValueError(
                f"data.in_memory: a device takes images of one size, those of {self.source} are of "
                "several (or lie on disk); data.in_memory=yes keeps them in memory"
            )
        moved = copy.copy(self)
        moved._resident = whole.to(device)
        return moved

    @property
    def resident(self) -> bool:
        """Whether crops are made where the pixels were moved to."""
        return self._resident is not None

    def take_new_broken(self) -> list[Broken]:
        """Broken files met since the last call (by this process), for a worker to hand on."""
        fresh = self._store.broken
        self._store.broken = []
        return fresh

    def pixels(self, index: int) -> Tensor:
        """The stored image, uint8 [3, h, w]."""
        return self._store[index]

    def images(self, indices: Tensor | npt.ArrayLike) -> Tensor:
        """Evaluation view: resized and centre-cropped, un-augmented, uint8 [B, 3, H, W]."""
        ids = np.asarray(indices, dtype=np.int64)
        whole = self._store.uniform
        if whole is not None and whole.shape[-2:] == self.image_size and self.eval_crop == 1.0:
            return whole[torch.from_numpy(ids)]
        out = torch.empty((len(ids), 3, *self.image_size), dtype=torch.uint8)
        for row, index in enumerate(ids):
            out[row] = evaluation_view(self._store[int(index)], self.image_size, self.eval_crop)
        return out

    def crops(
        self,
        seed: int,
        epoch: int,
        indices: Tensor | npt.ArrayLike,
        config: DataConfig,
        *,
        out: Tensor | None = None,
        threads: int | None = None,
    ) -> Tensor:
        """Training crops, uint8 [R * B, 3, H, W]: a function of (seed, epoch, index) and the image.

        With R = config.repeats above 1, crops of all images, then others of all, and so on: those
        of the epochs R * epoch, R * epoch + 1, ... of a run without. Each image is read once.

        out: memory of the crops, for instance pinned; threads: see `ops.resized_crop`.
        """
        ids = np.asarray(indices, dtype=np.int64)
        sources: Sequence[Tensor]
        if self._resident is None:
            sources = [self._store[int(index)] for index in ids]
        else:  # one gather, no copy of each image
            sources = self._resident[torch.from_numpy(ids).to(self._resident.device)].unbind()
        heights, widths = ([image.shape[side] for image in sources] for side in (1, 2))
        params = [
            crop_params(
                seed,
                config.repeats * epoch + repeat,
                ids,
                heights,
                widths,
                scale=config.crop_scale,
                ratio=config.crop_ratio,
                flip=config.flip,
            )
            for repeat in range(config.repeats)
        ]
        return ops.resized_crop(
            [*sources] * config.repeats,
            torch.from_numpy(np.concatenate([part.boxes for part in params])),
            self.image_size,
            flip=torch.from_numpy(np.concatenate([part.flip for part in params])),
            out=out,
            threads=threads,
        )

    def channel_stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of the evaluation views, in [0, 1] pixel units.

        Exact over the set where it is in memory, over 4,096 evenly spaced images where it is not;
        of a whole cache those of its stored images, which it knows.
        """
        if self._stats is not None:
            return self._stats
        count = len(self) if self.in_memory else min(len(self), _STATS_SAMPLE)
        ids = np.linspace(0, len(self) - 1, count).astype(np.int64)
        histogram = torch.zeros(3, 256, dtype=torch.int64)
        for start in range(0, count, 1024):
            batch = self.images(ids[start : start + 1024])
            for channel in range(3):
                histogram[channel] += torch.bincount(batch[:, channel].flatten(), minlength=256)
        values = torch.arange(256, dtype=torch.float64) / 255
        share = histogram.double() / histogram.sum(1, keepdim=True)
        mean = share @ values
        variance = (share * (values[None] - mean[:, None]) ** 2).sum(1)
        # A set of one colour has no spread; 1/255 keeps the division by std harmless.
        std = variance.sqrt().clamp_min(1 / 255)
        return tuple(mean.tolist()), tuple(std.tolist())

    def summary(self) -> str:
        """One line: how many images, from where, how many skipped."""
        text = f"{len(self):,} images from {self.source}"
        if self.class_names:
            text += f", {len(self.class_names)} classes"
        mapped = ", mapped from disk" if isinstance(self._store, CacheStore) else ""
        text += ", in memory" if self.in_memory else mapped or ", read from disk as needed"
        if self.broken:
            text += f"; {len(self.broken)} unreadable files skipped"
        return text


def open_images(
    path: str | Path,
    *,
    size: int | tuple[int, int],
    split: str = "train",
    in_memory: str = "auto",
    holdout: float = 0.0,
    eval_crop: float | None = None,
    progress: bool | None = None,
) -> ImageSet:
    """Open a folder of images, a cache of `clustermim cache`, or the built-in set "digits".

    Args:
        path: folder (searched recursively; class sub-folders or flat; with or without train/ and
            test/ or val/), cache, or "digits" (a folder of that name is "./digits").
        size: side or (H, W) of the views and crops, pixels. Stored images keep their own size, up
            to a short side of twice the larger of these.
        split: "train", "test" or "all"; see `data.folder.list_folder` for what they mean.
        in_memory: "auto" (below 2 GiB decoded), "yes" (and "device", see `ImageSet.to`) or "no".
            The pixels are the same either way.
        holdout: share taken for "test" where the folder has no test/.
        eval_crop: see `DataConfig`.
        progress: show a bar while reading; None: where stderr is a terminal.

    Raises:
        ValueError: no such folder, no images, no such split, none readable.
    """
    view = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(view) < 1:
        raise ValueError(f"size: expected positive pixels, got {size}")
    if split not in ("train", "test", "all"):
        raise ValueError(f'split: expected "train", "test" or "all", got {split!r}')
    in_memory = "yes" if in_memory == "device" else in_memory
    if str(path) == "digits":
        images, digit_labels, names = load_digits(split)
        store = MemoryStore.from_tensor(images)
        return ImageSet(
            store,
            view,
            labels=digit_labels,
            class_names=names,
            eval_crop=eval_crop,
            source="digits",
        )
    source = str(path) if split == "all" else f"{path} ({split})"
    cached = cache_listing(path, split, holdout)
    if cached is not None:
        facts = cached.caches[0].facts
        whole = len(cached.caches) == 1 and len(cached.keep) == facts["images"]
        return ImageSet(
            open_caches(cached, in_memory, IN_MEMORY_LIMIT),
            view,
            labels=cached.labels,
            class_names=cached.class_names,
            broken=cached.broken,
            eval_crop=eval_crop,
            source=source,
            stats=(tuple(facts["mean"]), tuple(facts["std"])) if whole else None,
        )
    listing = list_folder(path, split, holdout)
    longest = 2 * max(view)
    labels = listing.labels
    if in_memory == "no" or (
        in_memory == "auto" and estimate_bytes(listing.paths, longest) > IN_MEMORY_LIMIT
    ):
        return ImageSet(
            FileStore(listing.paths, longest),
            view,
            labels=labels,
            class_names=listing.class_names,
            eval_crop=eval_crop,
            source=source,
        )
    show = sys.stderr.isatty() if progress is None else progress
    memory, kept, broken = load_files(listing.paths, longest, progress=show)
    return ImageSet(
        memory,
        view,
        labels=None if labels is None else labels[kept],
        class_names=listing.class_names,
        broken=broken,
        eval_crop=eval_crop,
        source=source,
    )
