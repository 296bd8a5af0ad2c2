"""Compiles ahead, on all cores, the kernels that the stages after it launch: a few seconds of CPU
time each, one after the other otherwise. Nothing runs; what is missed here is compiled later.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite import images as pictures
from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.cases import one_line
from benchmarks.gpu_suite.journal import Journal
from clustermim_fast import ops
from clustermim_fast.ops import _cuda, _nvrtc

BYTES, HALF, FULL = torch.uint8, torch.bfloat16, torch.float32
NORM: dict[str, Any] = {"mean": pictures.MEAN, "std": pictures.STD}
METRICS = ("euclidean", "cosine", "dot")
DTYPES = (FULL, torch.float64, torch.float16, HALF)


def _rows(op: Any, n: int, d: int, k: int, dtype: torch.dtype, **options: Any) -> Any:
    """Memory that nobody touches: only sizes, and what divides them, are compiled for."""
    x, c = torch.empty(n, d, dtype=dtype), torch.zeros(k, d, dtype=dtype)
    return op(x, c, **{"backend": "triton", **options})


def _images(op: Any, b: int, p: int, k: int, dtype: torch.dtype, **options: Any) -> Any:
    side = 224 if p == 16 else 32
    images, c = torch.empty(b, 3, side, side, dtype=dtype), torch.zeros(k, 3 * p * p)
    return op(images, c, p, **{"backend": "triton", **options})


def _checked_images(memory_format: torch.memory_format) -> Any:
    """As patch_tokens' self-check has them."""
    images = torch.empty(5, 3, 32, 48, dtype=BYTES).to(memory_format=memory_format)
    return ops.patch_tokens(images, torch.zeros(70, 48), 4, backend="cuda", **NORM)


def _loss(k: int, d: int) -> Any:
    """Few samples: the products of many classes are computed."""
    x = torch.zeros(16, 197, d, dtype=HALF).requires_grad_()
    w, b = (torch.zeros(*s, dtype=HALF).requires_grad_() for s in ((k, d), (k,)))
    target = torch.zeros(16, 196, dtype=torch.int64)
    loss = ops.masked_linear_cross_entropy(
        x, w, target, target == 0, linear_bias=b, label_smoothing=0.1, num_prefix_tokens=1,
        backend="triton",
    )  # fmt: skip
    return torch.autograd.grad(loss, [x, w, b])


def calls(photographs: int, cifar: int) -> list[Callable[[], Any]]:
    """The heaviest first. As ids.py, assign.py, image_ops.py, losses.py and grid.py make them."""
    found: list[Callable[[], Any]] = []
    assign, tokens = ops.nearest_centroid, ops.patch_tokens
    many = 5102 * 196
    for n, d, k, dtype in ((many, 768, 100, FULL), (many, 384, 1000, HALF),
                           (many, 768, 8192, HALF), (200_000 * 64, 48, 512, HALF),
                           (2**14, 384, 1000, FULL)):  # fmt: skip
        found.append(partial(_rows, assign, n, d, k, dtype))
    found += [partial(_images, tokens, 5102, 16, 100, BYTES, **NORM),
              partial(_images, ops.lloyd_step_images, 5102, 16, 100, BYTES, **NORM),
              partial(_images, tokens, 5102, 16, 100, HALF),
              partial(_rows, ops.lloyd_step, many, 768, 100, FULL)]  # fmt: skip
    found += [partial(_loss, k, d) for k, d in ((100, 512), (1000, 512), (8192, 768))]
    for b, p, d, ks in ((photographs, 16, 768, (100, 1000)), (cifar, 4, 48, (50, 512))):
        n = b * (196 if p == 16 else 64)
        for k in ks:
            found += [partial(_images, tokens, b, p, k, BYTES, **NORM),
                      partial(_rows, assign, n, d, k, FULL)]  # fmt: skip
        k = ks[0]
        found += [partial(_rows, assign, n, d, k, dtype) for dtype in DTYPES[1:]]
        found += [partial(_rows, assign, n, d, k, FULL, metric=m) for m in METRICS[1:]]
        found += [partial(_images, tokens, b, p, k, dtype) for dtype in (FULL, HALF)]
        found += [partial(_images, tokens, b, p, k, BYTES, per_patch_norm=True, **NORM),
                  partial(_images, ops.lloyd_step_images, b, p, k, BYTES, **NORM),
                  partial(_rows, ops.lloyd_step, n, d, k, FULL)]  # fmt: skip
    found += [partial(_rows, assign, 2**20, d, 1024, torch.float16) for d in (64, 128, 256, 512)]
    return found


def cuda_calls(photographs: int, cifar: int) -> list[Callable[[], Any]]:
    """The same in CUDA C++, and those of its self-checks: NVRTC's cubins, and the Triton kernels
    beside them."""
    found: list[Callable[[], Any]] = []
    name = {"backend": "cuda"}
    assign, tokens, many = ops.nearest_centroid, ops.patch_tokens, 5102 * 196
    rows = [(many, 768, 100, FULL), (many, 384, 1000, HALF), (many, 768, 8192, HALF),
            (200_000 * 64, 48, 512, HALF), (2**14, 384, 1000, FULL),
            *((2**20, d, 1024, torch.float16) for d in (64, 128, 256, 512))]  # fmt: skip
    found += [partial(_rows, assign, *shape, **name) for shape in rows]
    found.append(partial(_images, tokens, 5102, 16, 100, BYTES, **NORM, **name))
    for b, p, d, ks in ((photographs, 16, 768, (100, 1000)), (cifar, 4, 48, (50, 512))):
        n, k = b * (196 if p == 16 else 64), ks[0]
        found += [partial(_images, tokens, b, p, k, BYTES, **NORM, **name) for k in ks]
        found += [partial(_rows, assign, n, d, k, FULL, **name) for k in ks]
        found += [partial(_rows, assign, n, d, k, dtype, **name) for dtype in DTYPES[2:]]
        found += [partial(_rows, assign, n, d, k, FULL, metric=m, **name) for m in METRICS[1:]]
        found.append(partial(_images, tokens, b, p, k, BYTES, per_patch_norm=True, **NORM, **name))
    found += [partial(_checked_images, f) for f in (torch.contiguous_format, torch.channels_last)]
    found += [partial(_compile_cuda, kind) for kind in _linear_kinds()]
    return found + [
        partial(_rows, assign, n, d, k, dtype, metric=m, **name)
        for n, d, k in ((300, 48, 200), (100, 384, 300))
        for m in METRICS
        for dtype in (FULL, *DTYPES[2:])
    ]


def _linear_kinds() -> list[Any]:
    """Of losses.py and of the self-check: what the forward makes, dX again, float16's two."""
    from clustermim_fast.ops.masked_linear_cross_entropy.cuda_few import Kind

    return [
        Kind(dtype, 112, *shape, *gradients)
        for shape in ((256, 2), (128, 1))
        for dtype, made in ((HALF, ((True, True), (True, False))),
                            (torch.float16, ((False, False), (True, True))))
        for gradients in made
    ]  # fmt: skip


def _compile_cuda(kind: Any, *_: Any) -> None:
    """In place of a launch: the cubin goes into the cache of the user."""
    _nvrtc.cubin(kind.kernel.source, kind.kernel.options)


@contextlib.contextmanager
def _cuda_offline() -> Iterator[None]:
    from clustermim_fast.ops.nearest_centroid import cuda_filter

    with (
        mock.patch.object(_cuda, "unavailable_reason", return_value=None),
        mock.patch.object(cuda_filter, "launch", _compile_cuda),
    ):
        yield


def compile_one(at: int, arch: int, cuda: bool, photographs: int, cifar: int) -> tuple[int, float]:
    """In a process of the pool: Triton kernels compiled, and its seconds."""
    from tests.gpu import static

    torch.set_num_threads(1)
    start = time.perf_counter()
    with static.offline(arch) as rows, _cuda_offline():
        (cuda_calls if cuda else calls)(photographs, cifar)[at]()
    return len(rows), time.perf_counter() - start


def run(bench: Bench, journal: Journal) -> None:
    """A rehearsal compiles one call, and none where the kernels are interpreted."""
    start = time.perf_counter()
    counts = tuple(len(pictures.load(bench, name)) for name in ("photographs", "cifar"))
    if bench.rehearsed:
        os.environ["TRITON_INTERPRET"] = "0"  # of the pool's processes
        arch, chosen = 90, [(0, False)]
        if not _nvrtc.unavailable_reason():
            chosen.append((0, True))
    else:
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
        chosen = [(at, False) for at in range(len(calls(*counts)))]
        if not hopper.left_out(bench, journal):
            chosen += [(at, True) for at in range(len(cuda_calls(*counts)))]
    kernels, context = 0, multiprocessing.get_context("spawn")
    workers = min(len(chosen), max(1, (os.cpu_count() or 1) - 1))
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = [pool.submit(compile_one, at, arch, cuda, *counts) for at, cuda in chosen]
        for done in as_completed(waiting):
            try:
                compiled, seconds = done.result()
            except Exception as error:  # noqa: BLE001  the stages after this one do without
                journal.write("note", compiling=one_line(error))
                continue
            kernels += compiled
            journal.write("note", compiled=compiled, seconds=seconds)
    journal.row(case="compile", method="triton", kernels=kernels, workers=workers,
                seconds=time.perf_counter() - start)  # fmt: skip
