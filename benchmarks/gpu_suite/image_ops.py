"""Ops that read images in place, and Lloyd steps, beside what they replace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite import images as pictures
from benchmarks.gpu_suite.assign import shares
from benchmarks.gpu_suite.assign_peers import torch_eager
from benchmarks.gpu_suite.bench import Bench, Ceilings
from benchmarks.gpu_suite.cases import Call, Case, Method, run_case
from benchmarks.gpu_suite.journal import Journal
from clustermim_fast import ops

OPTIONS: dict[str, Any] = {"mean": pictures.MEAN, "std": pictures.STD}


def in_pieces(images: torch.Tensor, c: torch.Tensor, p: int) -> torch.Tensor:
    """What users write: normalise, cut into patches, the formula; 256 images at a time."""
    out = []
    for part in images.split(256):
        pixels = pictures.normalised(part) if part.dtype == torch.uint8 else part.float()
        out.append(torch_eager(pictures.patches(pixels, p), c)())
    return torch.cat(out).view(len(images), -1)


def compiled_pieces(images: torch.Tensor, c: torch.Tensor, p: int) -> Call:
    def piece(part: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        pixels = pictures.normalised(part) if part.dtype == torch.uint8 else part.float()
        x = pictures.patches(pixels, p)
        return (c.square().sum(1) - 2 * x @ c.T).argmin(1)

    torch._dynamo.reset()
    compiled = torch.compile(piece, dynamic=False)
    return lambda: torch.cat([compiled(part, c) for part in images.split(256)]).view(
        len(images), -1
    )


def check_ids(truth: torch.Tensor) -> Callable[[Any], dict[str, Any]]:
    def check(ids: torch.Tensor) -> dict[str, Any]:
        wrong = int((ids[: len(truth)].cpu() != truth).sum())
        return {"wrong_ids": wrong, "checked_rows": truth.numel()}

    return check


def tokens(bench: Bench, journal: Journal, ceilings: Ceilings, shared: dict[str, Any]) -> None:
    uint8, c, p = shared["images"], shared["c"], shared["p"]
    k, truth_images = len(c), min(len(uint8), 256)
    shapes = {"uint8": (0.30, 0.20), "bf16": (0.45, 0.36)}
    for dtype, (goal, floor) in shapes.items():
        images, options = uint8, OPTIONS
        if dtype == "bf16":
            images, options = pictures.normalised(uint8).to(torch.bfloat16), {}
        ours = partial(ops.patch_tokens, images, c, p, backend="triton", **options)
        truth = ops.patch_tokens(images[:truth_images].cpu(), c.cpu(), p, **options)
        methods = [
            Method("ours", lambda call=ours: call),
            Method("torch, eager", lambda i=images: partial(in_pieces, i, c, p)),
            Method("torch.compile", lambda i=images: compiled_pieces(i, c, p)),
        ]
        if dtype == "uint8":  # it takes no others
            cuda = partial(ours, backend="cuda")
            methods.insert(1, Method(hopper.OURS, lambda call=cuda: call, hopper.missing(bench)))
        case = Case(
            f"patch_tokens {list(images.shape)} {dtype}, K {k}", methods,
            moved=images.numel() * images.element_size(), flops=2 * images.numel() * k,
            check=check_ids(truth), goal_ms=goal, paper_floor_ms=floor,
            facts=shares,
        )  # fmt: skip
        run_case(bench, journal, case, ceilings)


def torch_lloyd(x: torch.Tensor, c: torch.Tensor) -> Any:
    """The formula, then sums and counts by index_add; not repeatable bit for bit on a GPU."""
    ids = torch_eager(x, c)()
    sums = torch.zeros_like(c, dtype=torch.float32).index_add_(0, ids, x.float())
    return ids, sums, torch.bincount(ids, minlength=len(c))


def flash_lloyd(x: torch.Tensor, c: torch.Tensor) -> Call:
    from flash_kmeans.kmeans_triton_impl import _euclid_iter

    x_sq = x.float().square().sum(1)[None]
    return lambda: _euclid_iter(x[None], x_sq, c[None])


def lloyd(bench: Bench, journal: Journal, ceilings: Ceilings, shared: dict[str, Any]) -> None:
    """The goal is 1.3 times the assignment alone, which is a method beside it."""
    images, c, p = shared["images"], shared["c"], shared["p"]
    x = pictures.rows(images.cpu(), p, bench.device, torch.float32)
    k = len(c)
    methods = [
        Method("ours", lambda: partial(ops.lloyd_step, x, c, backend="triton")),
        Method("ours, assignment", lambda: partial(ops.nearest_centroid, x, c, backend="triton")),
        Method("torch, eager", lambda: partial(torch_lloyd, x, c)),
        Method("flash-kmeans", lambda: flash_lloyd(x, c)),
    ]
    case = Case(f"lloyd_step 1M x 768 fp32, K {k}", methods, moved=4 * x.numel(),
                flops=2 * x.numel() * k)  # fmt: skip
    run_case(bench, journal, case, ceilings)
    on_images = partial(ops.lloyd_step_images, images, c, p, backend="triton", **OPTIONS)
    assign = partial(ops.patch_tokens, images, c, p, backend="triton", **OPTIONS)
    methods = [Method("ours", lambda: on_images), Method("ours, assignment", lambda: assign)]
    case = Case(f"lloyd_step_images {list(images.shape)} uint8, K {k}", methods,
                moved=images.numel(), flops=2 * images.numel() * k)  # fmt: skip
    run_case(bench, journal, case, ceilings)


def replace(bench: Bench, journal: Journal, ceilings: Ceilings, shared: dict[str, Any]) -> None:
    images, c, p = shared["images"], shared["c"], shared["p"]
    length = (images.shape[2] // p) * (images.shape[3] // p)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(c), (len(images), length), generator=draw).to(bench.device)
    where = torch.rand(len(images), length, generator=draw).to(bench.device) < 0.4
    expected = ops.replace_patches(images[:64].cpu(), ids[:64].cpu(), c.cpu(), where[:64].cpu(), p)

    def check(out: torch.Tensor) -> dict[str, Any]:
        return {"wrong_ids": int((out[:64].cpu() != expected).sum())}

    def call(backend: str) -> Call:
        return partial(ops.replace_patches, images, ids, c, where, p, backend=backend)

    methods = [Method("ours", lambda: call("triton")),
               Method("torch, eager", lambda: call("reference"))]  # fmt: skip
    case = Case(f"replace_patches {list(images.shape)} uint8", methods, moved=2 * images.numel(),
                flops=0, check=check)  # fmt: skip
    run_case(bench, journal, case, ceilings)


def run(bench: Bench, journal: Journal) -> None:
    ceilings = Ceilings(bench)
    images = pictures.load(bench, "photographs", bench.size(5102, 1))
    if bench.rehearsed:
        images = images[:, :, :32, :32].contiguous()
    p = bench.size(16, 8)
    x = pictures.rows(images, p, bench.device, torch.float32)
    c = pictures.centroids(x, bench.size(100, 5))
    del x
    shared = {"images": images.to(bench.device), "c": c, "p": p}
    for part in (tokens, lloyd, replace):
        part(bench, journal, ceilings, shared)
