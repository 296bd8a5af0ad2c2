"""Memory that does not suffice: the batch and accumulation that keep the effective batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clustermim_fast.train.config import TrainConfig


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this machine refused memory: torch's CPU allocator has no type for it."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def smaller_batch(batch_size: int, accumulate: int, repeats: int = 1) -> tuple[int, int] | None:
    """(batch_size, accumulate) of the same product with at most half the batch, a multiple of
    ``repeats``; None where there is none.
    """
    whole = batch_size * accumulate
    for size in range(batch_size // 2, 0, -1):
        if whole % size == 0 and size % repeats == 0:
            return size, whole // size
    return None


@contextmanager
def naming_a_smaller_batch(config: TrainConfig) -> Iterator[None]:
    """Turn running out of memory into a MemoryError that names the settings to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(_message(config, error)) from error


def _message(config: TrainConfig, error: BaseException) -> str:
    optim = config.optim
    smaller = smaller_batch(optim.batch_size, optim.accumulate, config.data.repeats)
    others = "a smaller img_size=, a larger patch_size= or a smaller model="
    advice = f"the batch cannot be smaller; take {others}"
    if smaller is not None:
        advice = (
            f"batch_size={smaller[0]} accum_iter={smaller[1]} keeps the effective batch "
            f"({optim.batch_size * optim.accumulate}) and with it the learning rate, and takes "
            f"about half the memory (dry_run=true tries five steps); or {others}"
        )
    said = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return f"out of memory with batch_size={optim.batch_size}: {advice}. ({said})"
