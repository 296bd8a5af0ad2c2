"""Where the time of a step goes, on a CPU or in a CUDA stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Where a step's time goes: each mark ends a part that began at the last one.

    On CUDA the marks are events, read once the step has ended.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._cuda = device.type == "cuda"
        self._now = now
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str = "") -> None:
        """End part `name` here; "" begins a step."""
        at: Any = self._now()
        if self._cuda:
            at = torch.cuda.Event(enable_timing=True)
            at.record()
        self._marks.append((name, at))

    def seconds(self) -> dict[str, float]:
        """Seconds of each part since the step began, and their sum as "step"."""
        if self._cuda:
            torch.cuda.synchronize()
        parts: dict[str, float] = {}
        for (_, before), (name, at) in itertools.pairwise(self._marks):
            spent = before.elapsed_time(at) / 1e3 if self._cuda else at - before
            parts[name] = parts.get(name, 0.0) + spent
        self._marks.clear()
        return parts | {"step": sum(parts.values())}

    def around(self, function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        """`function`; what came before its call is part `before`, the call itself `after`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if before:
                self.mark(before)
            result = function(*args, **kwargs)
            self.mark(after)
            return result

        return timed
