"""The order of the samples and the batches made from it: pure functions of (seed, epoch,
position).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from clustermim_fast import counter_rng
from clustermim_fast.data import DataConfig, ImageSet
from clustermim_fast.masking import MaskConfig, Masker, Masks
from clustermim_fast.ranks import Alone, everyone
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.prefetch import AHEAD, Prefetched

MAX_WORKERS = 8
_SMALL_SIDE = 96


class Batch(NamedTuple):
    """One forward pass.

    images uint8 [B, 3, H, W]; samples int64 [B]; broken: files met unreadable while making it,
    (path, reason).
    """

    images: Tensor
    samples: Tensor
    masks: Masks
    broken: list[tuple[str, str]]


class BatchKey(NamedTuple):
    """Which samples of which epoch; each gives as many crops as the plan repeats."""

    epoch: int
    samples: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How a run's epochs fall into updates; the last, incomplete batch of an epoch is dropped."""

    num_samples: int
    batch_size: int
    accumulate: int
    epochs: int
    seed: int
    repeats: int = 1
    steps: int | None = None

    @classmethod
    def of(
        cls,
        num_samples: int,
        batch_size: int,
        accumulate: int,
        epochs: int,
        seed: int,
        repeats: int = 1,
        steps: int | None = None,
    ) -> Plan:
        """A plan whose batch, in crops, is no larger than an epoch; `steps` replace `epochs`."""
        if batch_size % repeats:
            raise ValueError(
                f"data.repeats: a batch of {batch_size} crops cannot hold {repeats} of each image; "
                f"give batch_size={max(1, round(batch_size / repeats)) * repeats}"
            )
        images = min(batch_size // repeats, num_samples)
        most = num_samples // images
        passes = max(1, min(accumulate, most))
        return cls(num_samples, images * repeats, passes, epochs, seed, repeats, steps)

    @classmethod
    def of_run(cls, config: TrainConfig, num_samples: int) -> Plan:
        """The plan of a resolved config's run."""
        optim = config.optim
        return cls.of(
            num_samples,
            optim.batch_size,
            optim.accumulate,
            optim.epochs,
            config.seed,
            config.data.repeats,
            optim.steps,
        )

    @property
    def effective_batch(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples * self.repeats // self.effective_batch

    @property
    def total_steps(self) -> int:
        return self.steps or self.steps_per_epoch * self.epochs

    def part(self, rank: int, ranks: int) -> slice:
        """Which images of each batch are `rank`'s: consecutive, of the first ranks one more."""
        images = self.batch_size // self.repeats
        if images < ranks:
            raise ValueError(
                f"optim.batch_size: {images} images of a batch cannot be shared by {ranks} ranks; "
                f"give batch_size={ranks * self.repeats} or more (of all ranks together), or start "
                "fewer"
            )
        size, longer = divmod(images, ranks)
        first = rank * size + min(rank, longer)
        return slice(first, first + size + (rank < longer))

    def parts(self, ranks: int) -> list[int]:
        """Crops of a batch that each rank takes."""
        parts = (self.part(rank, ranks) for rank in range(ranks))
        return [(part.stop - part.start) * self.repeats for part in parts]

    def keys(self, first_step: int, rank: int = 0, ranks: int = 1) -> Iterator[BatchKey]:
        """Keys of a rank's forward passes from update `first_step` to the end."""
        order: npt.NDArray[np.int64]
        part = self.part(rank, ranks)
        images = self.batch_size // self.repeats
        in_epoch = self.steps_per_epoch * self.accumulate
        first, end = (step * self.accumulate for step in (first_step, self.total_steps))
        for number in range(first, end):
            epoch, index = divmod(number, in_epoch)
            if number == first or index == 0:
                order = counter_rng.permutation(self.seed, epoch, self.num_samples)
            yield BatchKey(epoch, order[index * images : (index + 1) * images][part])


class _Keys(Sampler[BatchKey]):
    def __init__(self, plan: Plan, first_step: int, group: Alone) -> None:
        self._plan, self._first_step, self._group = plan, first_step, group

    def __iter__(self) -> Iterator[BatchKey]:
        return self._plan.keys(self._first_step, self._group.rank, self._group.count)

    def __len__(self) -> int:
        return (self._plan.total_steps - self._first_step) * self._plan.accumulate


class TrainingBatches(Dataset[Batch]):
    """Crops and masks of a batch key; the same in any process."""

    def __init__(
        self, images: ImageSet, data: DataConfig, mask: MaskConfig, patch: int, seed: int
    ) -> None:
        self._images = images
        self._data = data
        self._seed = seed
        height, width = images.image_size
        self._masker = Masker(mask, (height // patch, width // patch), patch)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the crops, pixels."""
        return self._images.image_size

    @property
    def resident(self) -> bool:
        """Whether crops are made on a device."""
        return self._images.resident

    def __getitem__(self, key: BatchKey) -> Batch:
        return self.make(key)

    def make(self, key: BatchKey, out: Tensor | None = None, threads: int | None = None) -> Batch:
        """The batch of a key; out, threads: see `ImageSet.crops`."""
        crops = self._images.crops(
            self._seed, key.epoch, key.samples, self._data, out=out, threads=threads
        )
        repeats = self._data.repeats
        epochs = range(repeats * key.epoch, repeats * (key.epoch + 1))
        drawn = [self._masker(self._seed, epoch, key.samples) for epoch in epochs]
        masks = drawn[0] if repeats == 1 else _joined(drawn)
        samples = torch.from_numpy(key.samples).repeat(repeats)
        broken = [(str(path), reason) for path, reason in self._images.take_new_broken()]
        return Batch(crops, samples, masks, broken)


def _joined(parts: list[Masks]) -> Masks:
    """The masks of several batches as those of one."""
    replaced = [part.replaced for part in parts if part.replaced is not None]
    return Masks(
        torch.cat([part.mask for part in parts]),
        torch.cat([part.visible for part in parts]),
        torch.cat(replaced) if replaced else None,
    )


def make_loader(
    batches: TrainingBatches,
    plan: Plan,
    first_step: int,
    *,
    workers: int | None,
    pin_memory: bool,
    threads: int = 1,
) -> Iterable[Batch]:
    """This rank's part of all batches that are left, so that no epoch starts with a pause.

    workers: processes of a DataLoader; 0: made when they are asked for; None: by a thread, with
    `threads` cores, into memory that is used again (see `Prefetched`).
    """
    group = everyone()
    if workers is None:
        size = (plan.parts(group.count)[group.rank], 3, *batches.image_size)
        memory = [
            torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory) for _ in range(AHEAD + 1)
        ]

        def make(key: BatchKey, out: Tensor) -> Batch:
            return batches.make(key, out, threads)

        return Prefetched(plan.keys(first_step, group.rank, group.count), make, memory)
    return DataLoader(
        batches,
        sampler=_Keys(plan, first_step, group),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory and not batches.resident,  # memory of a GPU cannot be
        prefetch_factor=2 if workers else None,
        worker_init_fn=_init_worker,
    )


def choose_workers(asked: int | None, images: ImageSet, device: torch.device) -> int | None:
    """A rank's loader processes: what was asked for; for files to decode one per core, half as many
    where the network runs on the same cores, eight at most. None: pixels are there, a thread is
    enough.
    """
    if images.resident:
        if asked:
            raise ValueError(
                f"efficiency.workers: expected none with data.in_memory=device, got {asked}; crops "
                "are made on the device"
            )
        return 0
    if asked is not None:
        return asked
    if images.decoded:
        # A 32-pixel crop takes microseconds: handing it over would take longer.
        small = images.in_memory and max(images.image_size) < _SMALL_SIDE
        return 0 if small else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = 2 if device.type == "cpu" else 1
    share *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks of this machine
    return max(1, min(MAX_WORKERS, (cores or 1) // share))


def reading_advice(data: DataConfig, images: ImageSet) -> str:
    """What to do where a run waits for its images."""
    if images.decoded:
        return "efficiency.workers=2 (or more) makes crops in processes of their own"
    return (
        f"`clustermim cache data={data.path} out=CACHE` decodes them once for all epochs, and "
        "data=CACHE reads that; or data.repeats=2 takes two crops of each image that is read"
    )


def _init_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer alone decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
