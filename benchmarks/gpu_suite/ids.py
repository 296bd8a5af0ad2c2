"""CPU = GPU on the real images: ids of every op that assigns, sums of the Lloyd steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite import images as pictures
from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.cases import one_line
from benchmarks.gpu_suite.journal import Journal
from clustermim_fast import ops

OPTIONS: dict[str, Any] = {"mean": pictures.MEAN, "std": pictures.STD}


def differing(on_cpu: Any, on_gpu: Any) -> int:
    """Values that are not equal; tensors or tuples of them."""
    one = isinstance(on_cpu, torch.Tensor)
    pairs = [(on_cpu, on_gpu)] if one else list(zip(on_cpu, on_gpu, strict=True))
    return sum(int((a != b.cpu()).sum()) for a, b in pairs)


def compare(
    bench: Bench, journal: Journal, name: str, op: Callable[..., Any], *tensors: torch.Tensor,
    keep: int | None = None, cuda: bool = False, **options: Any,
) -> None:  # fmt: skip
    """A row with the number of results that differ; ``keep``: of the first so many only.

    cuda: a row for the back-end in CUDA C++ too.
    """
    methods = {"ours": (name, "triton"), hopper.OURS: (f"{name}, CUDA", "cuda")}
    right, cpu_s = None, 0.0
    for method, (case, backend) in methods.items():
        if journal.finished(case) or journal.failure(case, method):
            continue
        if backend == "cuda" and (not cuda or hopper.left_out(bench, journal)):
            continue
        journal.write("trying", case=case, method=method)
        try:
            if right is None:
                start = time.perf_counter()
                right = op(*(t.cpu() for t in tensors), **options)[:keep]
                cpu_s = time.perf_counter() - start
            start = time.perf_counter()
            got = op(*(t.to(bench.device) for t in tensors), backend=backend, **options)[:keep]
            bench.synchronize()
            gpu_s = time.perf_counter() - start
            wrong = differing(right, got)
        except Exception as error:  # noqa: BLE001  a row with its reason
            journal.write("failed", case=case, method=method, reason=one_line(error))
            continue
        count = right.numel() if isinstance(right, torch.Tensor) else sum(t.numel() for t in right)
        journal.row(case=case, method=method, differing=wrong, of=count, cpu_s=cpu_s, gpu_s=gpu_s)
        journal.write("finished", case=case)


def run(bench: Bench, journal: Journal) -> None:
    """K of the issue's table; D = 768 and 48; three metrics; four dtypes."""
    if not hopper.left_out(bench, journal):
        hopper.self_checks(bench, journal)
    cpu = torch.device("cpu")
    for name, p, ks in (("photographs", 16, (100, 1000, 8192)), ("cifar", 4, (50, 512))):
        images = pictures.load(bench, name)
        if bench.rehearsed:
            images, p, ks = images[:1, :, :32, :32].contiguous(), 8, ks[:1]
        x = pictures.rows(images, p, cpu, torch.float32)
        for k in ks:
            k = bench.size(k, 4)
            c = pictures.centroids(x.to(bench.device), k, iterations=1).cpu()
            what = f"{len(images)} images of {name}, K {k}"
            compare(bench, journal, f"patch_tokens, uint8, {what}", ops.patch_tokens, images, c,
                    cuda=True, patch_size=p, **OPTIONS)  # fmt: skip
            compare(bench, journal, f"nearest_centroid, fp32, {what}", ops.nearest_centroid, x, c,
                    cuda=True)  # fmt: skip
            if k not in (100, 50, 4):
                continue
            pixels = pictures.normalised(images)
            for dtype in (torch.float32, torch.bfloat16):
                compare(bench, journal, f"patch_tokens, {dtype}, {what}", ops.patch_tokens,
                        pixels.to(dtype), c, patch_size=p)  # fmt: skip
            compare(bench, journal, f"patch_tokens, per-patch norm, {what}", ops.patch_tokens,
                    images, c, cuda=True, patch_size=p, per_patch_norm=True, **OPTIONS)  # fmt: skip
            for dtype in (torch.float64, torch.float16, torch.bfloat16):
                compare(bench, journal, f"nearest_centroid, {dtype}, {what}", ops.nearest_centroid,
                        x.to(dtype), c.to(dtype), cuda=dtype != torch.float64)  # fmt: skip
            for metric in ("cosine", "dot"):
                compare(bench, journal, f"nearest_centroid, {metric}, {what}",
                        ops.nearest_centroid, x, c, cuda=True, metric=metric)  # fmt: skip
            compare(bench, journal, f"lloyd_step_images, uint8, {what}", ops.lloyd_step_images,
                    images, c, keep=3, patch_size=p, **OPTIONS)  # fmt: skip
            compare(bench, journal, f"lloyd_step, ids, {what}", ops.lloyd_step, x, c, keep=1)
