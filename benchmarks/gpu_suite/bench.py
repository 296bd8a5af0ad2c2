"""Where a stage runs and how it times: a GPU with its events, or a rehearsal on the CPU."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

REHEARSE = "GPU_SUITE_REHEARSE"
# Work the GPU does before a timed call, so that the launches of the call wait in its queue: device
# time is measured, not Python. What a call costs the host is a column of its own.
AHEAD_CYCLES = 1_000_000


class Bench:
    """A device, how large its problems are, and the folder that the stages share."""

    def __init__(self, work: Path, rehearsed: bool | None = None) -> None:
        self.rehearsed = os.environ.get(REHEARSE) == "1" if rehearsed is None else rehearsed
        self.device = torch.device("cpu" if self.rehearsed else "cuda")
        self.work = work

    def size(self, real: int, rehearsed: int) -> int:
        """``real`` on a GPU, the tiny one in a rehearsal."""
        return rehearsed if self.rehearsed else real

    def synchronize(self) -> None:
        if not self.rehearsed:
            torch.cuda.synchronize()

    def ms(self, call: Callable[[], Any]) -> float:
        """Milliseconds on the device of one call."""
        if self.rehearsed:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD_CYCLES)
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)

    def host_us(self, call: Callable[[], Any], calls: int = 100) -> float:
        """Microseconds of the host for one call: the median of five runs without waiting."""
        calls = self.size(calls, 2)
        medians = []
        for _ in range(self.size(5, 1)):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            medians.append(1e6 * (time.perf_counter() - start) / calls)
        self.synchronize()
        return statistics.median(medians)

    def interleave(
        self, methods: Mapping[str, Callable[[], Any]], rounds: int = 15, seconds: float = 3.0
    ) -> dict[str, list[float]]:
        """Milliseconds of every round: all methods in turn, in an order that rotates.

        A method that has taken ``seconds`` sits out the rest, after three rounds at the earliest.
        """
        rounds = self.size(rounds, 1)
        found: dict[str, list[float]] = {name: [] for name in methods}
        names = list(methods)
        gc.collect()
        for i in range(rounds):
            at = i % max(1, len(names))
            for name in names[at:] + names[:at]:
                if len(found[name]) < 3 or sum(found[name]) < 1e3 * seconds:
                    found[name].append(self.ms(methods[name]))
        return found

    def peak_mib(self, call: Callable[[], Any]) -> float | None:
        """MiB that a call holds at most, beyond what was held before it."""
        if self.rehearsed:
            return None
        gc.collect()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak / 2**20


class Ceilings:
    """A large copy and a large product, timed in the rounds of the methods they stand beside."""

    def __init__(self, bench: Bench) -> None:
        n, side = bench.size(2**29, 2**12), bench.size(8192, 64)
        self.bytes, self.flops = 2 * n, 2 * side**3
        source = torch.randint(0, 255, (n,), dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)
        a, b = (torch.randn(side, side, device=bench.device).to(torch.bfloat16) for _ in "ab")
        self.methods: dict[str, Callable[[], Any]] = {
            "copy": lambda: target.copy_(source),
            "product": lambda: a @ b,
        }

    def floor(self, times: Mapping[str, list[float]], moved: float, flops: float) -> dict[str, Any]:
        """Ceilings as measured, and the milliseconds that ``moved`` bytes and ``flops`` need."""
        copy, product = (1e-3 * statistics.median(times[name]) for name in ("copy", "product"))
        return {
            "copy_gb_s": self.bytes / copy / 1e9,
            "bf16_tflop_s": self.flops / product / 1e12,
            "floor_ms": 1e3 * max(moved / self.bytes * copy, flops / self.flops * product),
        }
