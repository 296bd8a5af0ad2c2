"""What k-means and training ask of torch.distributed: sums over ranks; nothing where there is one.

Every rank must make the same calls in the same order. Only ``all_reduce`` (sum) and ``broadcast``
are used, on plain tensors, so that gloo and NCCL serve alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Numbers = npt.NDArray[Any]  # float64, int64 or uint64
T = TypeVar("T")


class Alone:
    """One process: what all ranks hold together is what this one holds."""

    count = 1
    rank = 0

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, the same bits on each; ``tensor`` may be overwritten."""
        return tensor

    def fill(self, tensor: torch.Tensor) -> torch.Tensor:
        """Each element from the one rank that has it; the others hold 0 there."""
        return tensor

    def each(self, values: Numbers) -> Numbers:
        """[count, m]: every rank's ``values`` [m], of 8 bytes each."""
        return values[None]

    def join(self, values: Numbers) -> Numbers:
        """The ranks' ``values`` [n], n their own, one after another."""
        return values

    def texts(self, text: str) -> list[str]:
        """Every rank's ``text``."""
        return [text]

    def agree(self, read: Callable[[], T]) -> T:
        """What ``read`` returns; where it fails on one rank, every rank raises.

        ``read`` looks at what is this rank's own, and calls nothing that other ranks take part in.
        """
        return read()

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's tensor; same shape and dtype everywhere."""
        return tensor

    def same_draws(self, random: np.random.RandomState) -> np.random.RandomState:
        """A generator that draws on every rank what rank 0's ``random`` draws."""
        return random

    def require_equal(self, what: str, value: object) -> None:
        """ValueError on every rank where ``repr(value)`` differs between them."""


class Everyone(Alone):
    """The ranks of the default process group."""

    def __init__(self) -> None:
        self.count = torch.distributed.get_world_size()
        self.rank = torch.distributed.get_rank()
        on_gpu = torch.distributed.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu"

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """all_reduce, where the backend wants its tensors."""
        moved = tensor.to(self._device).contiguous()
        torch.distributed.all_reduce(moved)
        return moved.to(tensor.device)

    def fill(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of the bits as integers: no value is rounded, -0.0 and NaN stay."""
        bits = torch.int64 if tensor.element_size() == 8 else torch.int32
        return self.total(tensor.view(bits)).view(tensor.dtype)

    def each(self, values: Numbers) -> Numbers:
        """One all_reduce of zeros around the own values."""
        every = np.zeros((self.count, len(values)), dtype=np.int64)
        every[self.rank] = values.view(np.int64)
        return self.total(torch.from_numpy(every)).numpy().view(values.dtype)

    def join(self, values: Numbers) -> Numbers:
        """Lengths first, then all values at their places."""
        ends = np.cumsum(self.each(np.array([len(values)]))[:, 0])
        joined = np.zeros(ends[-1], dtype=np.int64)
        end = int(ends[self.rank])
        joined[end - len(values) : end] = values.view(np.int64)
        return self.total(torch.from_numpy(joined)).numpy().view(values.dtype)

    def texts(self, text: str) -> list[str]:
        """Their bytes, joined and cut again."""
        own = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        ends = np.cumsum(self.each(np.array([len(own)]))[:, 0])
        joined = self.join(own).astype(np.uint8).tobytes()
        starts = [0, *ends[:-1]]
        return [joined[a:b].decode() for a, b in zip(starts, ends, strict=True)]

    def agree(self, read: Callable[[], T]) -> T:
        """Else the others would wait for this rank in their next all_reduce."""
        failure, found = None, None
        try:
            found = read()
        except Exception as error:  # noqa: BLE001
            failure = error
        failed = self.each(np.array([int(failure is not None)]))[:, 0]
        if not failed.any():
            return found  # type: ignore[return-value]
        rank = int(np.argmax(failed))
        reason = self.texts(str(failure or ""))[rank]
        if failure is not None:
            raise failure
        raise ValueError(
            f"rank {rank} of {self.count} refused its input, and this rank stops with it: {reason}"
        )

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """From rank 0."""
        moved = tensor.to(self._device).contiguous()
        torch.distributed.broadcast(moved, 0)
        return moved.to(tensor.device)

    def same_draws(self, random: np.random.RandomState) -> np.random.RandomState:
        """Rank 0 keeps its generator, the others get a copy of it."""
        name, keys, position, has_gauss, gauss = random.get_state(legacy=True)
        words = [*np.asarray(keys).astype(np.int64), position, has_gauss]
        words.append(np.float64(gauss).view(np.int64))
        state = self.broadcast(torch.tensor(words, dtype=torch.int64)).numpy()
        if self.rank == 0:
            return random
        copy = np.random.RandomState()
        keys, last = state[:-3].astype(np.uint32), state[-1:].view(np.float64)[0]
        copy.set_state((name, keys, int(state[-3]), int(state[-2]), float(last)))
        return copy

    def require_equal(self, what: str, value: object) -> None:
        """Compares hashes, then says what this rank has."""
        digest = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
        hashes = self.each(np.frombuffer(digest, dtype=np.int64))[:, 0]
        if (hashes != hashes[0]).any():
            other = int(np.argmax(hashes != hashes[0]))
            raise ValueError(
                f"{what} must be the same on every rank; ranks 0 and {other} differ, "
                f"rank {self.rank} has {value!r}"
            )


ALONE = Alone()


def everyone() -> Alone:
    """All ranks where torch.distributed runs with several, else this process alone."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return Everyone() if distributed.get_world_size() > 1 else ALONE
    return ALONE
