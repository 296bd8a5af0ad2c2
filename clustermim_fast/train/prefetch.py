"""`Prefetched`: batches that a thread makes ahead of the training step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
AHEAD = 2  # batches that wait; one more is in use


class Prefetched(Generic[Made]):
    """What `make` makes of each key, in order, a few ahead, by one thread without processes.

    The thread leaves the GIL where the work is (the core's crops), and writes to memory that is
    used again: what came last is valid until the next is asked for. With pinned memory, a copy to
    the device that was queued by then is waited for before its source is written again.

    Args:
        keys: of all batches.
        make: makes the batch of a key in a tensor of `memory`.
        memory: as many tensors as batches may exist at once, two or more.
    """

    def __init__(
        self, keys: Iterable[Any], make: Callable[[Any, Tensor], Made], memory: list[Tensor]
    ) -> None:
        self._keys, self._make, self._memory = keys, make, memory

    def __iter__(self) -> Iterator[Made]:
        free: queue.Queue[Any] = queue.Queue()
        ready: queue.Queue[Any] = queue.Queue()
        for out in self._memory:
            free.put((out, None))
        thread = threading.Thread(target=self._fill, args=(free, ready), daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                batch, out = item
                yield batch
                copied = None
                if out.is_pinned():
                    copied = torch.cuda.Event()
                    copied.record()
                free.put((out, copied))
        finally:
            free.queue.clear()
            free.put(None)
            thread.join()

    def _fill(self, free: queue.Queue[Any], ready: queue.Queue[Any]) -> None:
        try:
            for key in self._keys:
                slot = free.get()
                if slot is None:
                    return
                out, copied = slot
                if copied is not None:
                    copied.synchronize()
                ready.put((self._make(key, out), out))
            ready.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the batch
            ready.put(error)
