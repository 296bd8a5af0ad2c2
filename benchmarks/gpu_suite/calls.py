"""One small call of every op in a fresh process: what it must agree with, and what it costs.

Also what compute-sanitizer runs (sanitize.py): sizes that no tile divides.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.cases import one_line
from benchmarks.gpu_suite.journal import Journal
from clustermim_fast import ops
from clustermim_fast.ops import _choice, _self_checks


def small_calls(device: torch.device, backend: str = "triton") -> dict[str, Callable[[], Any]]:
    """Odd sizes of every op that has this back-end."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(device)

    x, c = normal(133, 48), normal(37, 48)
    images = torch.randint(0, 256, (2, 3, 12, 20), generator=draw, dtype=torch.uint8).to(device)
    ids = torch.randint(-1, 37, (2, 15), generator=draw).to(device)
    where = ids % 2 == 0
    logits, target = normal(2, 15, 37).requires_grad_(), ids.clamp(min=0)
    hidden, weight = normal(2, 16, 24).requires_grad_(), normal(37, 24).requires_grad_()
    narrow, deep = (
        [normal(*shape, d).bfloat16().requires_grad_() for shape in ((2, 16), (37,))]
        for d in (24, 264)
    )

    def backward(loss: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Any:
        return torch.autograd.grad(loss(), leaves)

    name = {"backend": backend}
    plain = partial(ops.masked_cross_entropy, logits, target, where, label_smoothing=0.1, **name)

    def linear(leaves: list[torch.Tensor]) -> Callable[[], Any]:
        loss = partial(ops.masked_linear_cross_entropy, *leaves, target, where,
                       num_prefix_tokens=1, **name)  # fmt: skip
        return partial(backward, loss, leaves)

    found = {
        "replace_patches": partial(ops.replace_patches, images, ids, c, where, 4, **name),
        "nearest_centroid": partial(ops.nearest_centroid, x, c, **name),
        "nearest_centroid, bf16": partial(
            ops.nearest_centroid, x.bfloat16(), c.bfloat16(), metric="cosine", **name
        ),
        "patch_tokens": partial(ops.patch_tokens, images, c, 4, **name),
        "lloyd_step": partial(ops.lloyd_step, x, c, **name),
        "lloyd_step_images": partial(ops.lloyd_step_images, images, c, 4, **name),
        "masked_cross_entropy": partial(backward, plain, [logits]),
        "masked_linear_cross_entropy": linear([hidden, weight]),
        "masked_linear_cross_entropy, bf16": linear(narrow),
    }
    if backend == "triton":
        return found
    del found["masked_linear_cross_entropy"]  # it takes 16 bits alone
    found["masked_linear_cross_entropy, pairs of blocks"] = linear(deep)
    return {name: call for name, call in found.items() if name.split(",")[0] in hopper.OPS}


def cold_starts(
    bench: Bench, journal: Journal, calls: dict[str, Callable[[], Any]], method: str = "ours"
) -> None:
    """Rows with the seconds of each first call, those of NVRTC in it, and the host's µs of others.

    Those in CUDA C++ come after Triton's, most of whose kernels they share.
    """
    for case, call in calls.items():
        name = case if method == "ours" else f"{case}, CUDA"
        if journal.failure(name, method) or journal.finished(name):
            continue
        journal.write("trying", case=name, method=method)
        try:
            start = time.perf_counter()
            with (
                hopper.cold() if method == hopper.OURS else contextlib.nullcontext([]) as compiling
            ):
                call()
                bench.synchronize()
            seconds = time.perf_counter() - start
            host = bench.host_us(call)
        except Exception as error:  # noqa: BLE001  a row with its reason
            journal.write("failed", case=name, method=method, reason=one_line(error))
            continue
        journal.row(case=name, method=method, cold_start_s=seconds, nvrtc_s=sum(compiling),
                    host_us=host)  # fmt: skip
        journal.write("finished", case=name)


def run(bench: Bench, journal: Journal) -> None:
    """Checks, warm-up, and for each op the seconds of its first call and the host's µs of others.

    The caches of compiled kernels are empty: the suite begins with its own.
    """
    cold_starts(bench, journal, small_calls(bench.device))
    if not hopper.left_out(bench, journal):
        cold_starts(bench, journal, small_calls(bench.device, "cuda"), hopper.OURS)
    device = torch.empty(0, device=bench.device).device
    for op, check in _self_checks.CHECKS.items():
        name = f"self-check of {op}"
        if journal.failure(name, "ours") or journal.finished(name):
            continue
        journal.write("trying", case=name, method="ours")
        start = time.perf_counter()
        try:
            check(device)
            problem = ""
        except Exception as error:  # noqa: BLE001
            problem = one_line(error)
        journal.row(case=name, method="ours", seconds=time.perf_counter() - start, ok=not problem,
                    problem=problem)  # fmt: skip
        journal.write("finished", case=name)
    start = time.perf_counter()
    chosen = ops.warmup(device)
    seconds = time.perf_counter() - start
    who = {op: _choice._identity(op, str(device), name) for op, name in chosen.items()}
    journal.row(case="warmup", method="ours", seconds=seconds, chosen=chosen, identity=who)
