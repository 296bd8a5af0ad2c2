"""The back-end in CUDA C++ beside Triton's: where it can run, and what is asked of it alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from unittest import mock

from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.journal import Journal
from clustermim_fast.ops import _choice, _cuda, _nvrtc

OURS = "ours, CUDA"
OPS = ("nearest_centroid", "patch_tokens", "masked_linear_cross_entropy")
TESTS = ("test_nearest_centroid*.py", "test_patch_tokens*.py", "test_masked_l*.py")  # of tests/ops


def missing(bench: Bench) -> str:
    """Why it cannot run, or is not tried again: a call of the first stage hung or died."""
    for line in Journal(bench.work / "calls.jsonl").of("failed"):
        if line["method"] == OURS and line.get("fatal"):
            return f"{line['case']}: {line['reason']}"
    return _cuda.unavailable_reason(bench.device) or ""


def left_out(bench: Bench, journal: Journal) -> bool:
    """Whether a stage does without; its reason goes into the journal."""
    reason = missing(bench)
    if reason and not journal.failure("all", OURS):
        journal.write("failed", case="all", method=OURS, reason=reason, missing=True)
    return bool(reason)


@contextlib.contextmanager
def cold() -> Iterator[list[float]]:
    """Inside, a call that names it is not held against plain torch before; yields the seconds of
    each compilation by NVRTC."""
    seconds: list[float] = []
    compile_source = _nvrtc.compile_source

    def timed(source: str, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
        start = time.perf_counter()
        try:
            return compile_source(source, options)
        finally:
            seconds.append(time.perf_counter() - start)

    with (
        mock.patch.object(_nvrtc, "compile_source", timed),
        mock.patch.object(_choice, "verdict", return_value=""),
    ):
        yield seconds


def self_checks(bench: Bench, journal: Journal) -> None:
    """As its first call makes them, once for each op; every other process takes the verdict from
    the suite's cache. A rehearsal makes the smallest: each kind is a library of its own."""
    import torch

    device = str(torch.empty(0, device=bench.device).device)
    for op in OPS if not bench.rehearsed else OPS[1:2]:
        name = f"self-check of {op}, CUDA"
        if journal.failure(name, OURS) or journal.finished(name):
            continue
        journal.write("trying", case=name, method=OURS)
        start = time.perf_counter()
        problem = _choice.verdict(op, device, "cuda")
        journal.row(case=name, method=OURS, seconds=time.perf_counter() - start, ok=not problem,
                    problem=problem)  # fmt: skip
        journal.write("finished", case=name)
