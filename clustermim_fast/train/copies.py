"""Batches on a CUDA device: copied while it computes, from pinned memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clustermim_fast.masking import Masks
from clustermim_fast.train.batches import Batch


def copied_beside(batches: Iterator[Batch], device: torch.device, keep: int) -> Iterator[Batch]:
    """`batches` with images and masks on `device`, copied on a stream of their own.

    The memory of `keep` + 1 batches there is used again and again: work on a batch must be queued
    before the `keep`-th batch after it is asked for. A copy waits for what was queued when the
    batch before was asked for, not for the step that was queued since. So it runs beside that step,
    and the host can be no more than a few batches ahead of the device.
    """
    side = torch.cuda.Stream(device)
    slots: list[list[Any]] = []
    asked = torch.cuda.current_stream(device).record_event()
    number = 0
    while True:
        before, asked = asked, torch.cuda.current_stream(device).record_event()
        with torch.cuda.stream(side):  # on which `Prefetched` marks that its memory was read
            batch = next(batches, None)
            if batch is None:
                return
            parts = [batch.images, *batch.masks]
            if len(slots) <= keep:
                slots.append(
                    [None if p is None else torch.empty_like(p, device=device) for p in parts]
                )
            slot = slots[number % len(slots)]
            side.wait_event(before)
            for there, here in zip(slot, parts, strict=True):
                if here is not None:
                    there.copy_(pinned(here), non_blocking=True)
            copied = side.record_event()
        torch.cuda.current_stream(device).wait_event(copied)
        yield batch._replace(images=slot[0], masks=Masks(*slot[1:]))
        number += 1


def pinned(tensor: Tensor) -> Tensor:
    """Where the copy to a CUDA device need not be waited for; torch keeps it until it was read."""
    available = tensor.device.type == "cpu" and torch.cuda.is_available()
    return tensor.pin_memory() if available and not tensor.is_pinned() else tensor
