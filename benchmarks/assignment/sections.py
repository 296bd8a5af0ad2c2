"""The sections of the assignment benchmark: float32 rows, uint8 images, calls of one row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.assignment import methods
from benchmarks.assignment.limits import Limits
from benchmarks.assignment.methods import OURS, Row
from benchmarks.harness import interleave, say
from benchmarks.workloads import IMAGENET, WORKLOADS, ImageSource, Rows, Store, Workload, patchify
from clustermim_fast import ops
from clustermim_fast.bench.paths import isa_paths

PIPELINE_IMAGES = 200
PIPELINE_BATCH = 64  # images that a peer's pipeline normalises and cuts at a time
ID_BYTES = 8


def workload_rows(workload: Workload, store: Store, limits: Limits, options: Any) -> list[Row]:
    """One workload: ours in every form, and the peers on float32 rows made beforehand."""
    everything = store.load(workload)
    data = everything.some(workload.timed_images)
    x, c = data.x, data.centroids
    calls: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, int] = {}
    for name, variant in methods.our_variants(options).items():
        sizes[name] = methods.allowed_rows(name, len(x), c.numel(), slow=False)
        calls[name] = variant(partial(ops.nearest_centroid, x[: sizes[name]], c))
    if workload.features == "patches" and not options.held:
        calls[f"{OURS}, patch_tokens"] = partial(tokens, data, workload.source)
        sizes[f"{OURS}, patch_tokens"] = len(x)
    for name, (peer, assign) in methods.ready_peers(c, options).items():
        sizes[name] = methods.allowed_rows(name, len(x), c.numel(), peer.slow)
        calls[name] = partial(assign, x[: sizes[name]])
    rows = table_rows("rows", workload.name, data, calls, sizes, limits, options, 4 * x.shape[1])
    first = next(iter(calls))
    rows[0].rescored = methods.rescored_shares(calls[first])
    if len(x) < len(everything.x) and not options.held:
        ids = ops.nearest_centroid(everything.x, c).numpy()
        say(
            f"  ours on all {len(everything.x):,} rows of {workload.name}: "
            f"{int((ids != everything.truth).sum())} wrong ids"
        )
    return rows


def tokens(data: Rows, source: ImageSource) -> torch.Tensor:
    """Our whole pipeline: uint8 images to ids."""
    found: torch.Tensor = ops.patch_tokens(
        data.images, data.centroids, source.patch_size, mean=source.mean, std=source.std
    )
    return found.flatten()


def peer_pipeline(assign: Callable, source: ImageSource, images: torch.Tensor) -> np.ndarray:
    """torchvision's ToTensor scaling and Normalize, patches cut, a peer's assignment."""
    from torchvision.transforms.functional import normalize

    ids = []
    for part in images.split(PIPELINE_BATCH):
        pixels = normalize(part.float().div_(255), source.mean, source.std, inplace=True)
        ids.append(np.asarray(assign(patchify(pixels, source.patch_size).flatten(0, 1))))
    return np.concatenate(ids)


def image_rows(num_centroids: int, store: Store, limits: Limits, options: Any) -> list[Row]:
    """uint8 images of 224 x 224 to ids."""
    workload = WORKLOADS[f"inet{num_centroids}"]
    data = store.load(workload).some(PIPELINE_IMAGES)
    source = IMAGENET
    calls: dict[str, Callable[[], Any]] = {}
    for name, variant in methods.our_variants(options).items():
        calls[name] = variant(partial(tokens, data, source))
    for name, (_, assign) in methods.ready_peers(data.centroids, options).items():
        calls[name] = partial(peer_pipeline, assign, source, data.images)
    sizes = dict.fromkeys(calls, len(data.truth))
    name = f"uint8 images, K = {num_centroids}"
    return table_rows("images", name, data, calls, sizes, limits, options, data.x.shape[1])


def table_rows(
    section: str,
    name: str,
    data: Rows,
    calls: dict[str, Callable[[], Any]],
    sizes: dict[str, int],
    limits: Limits,
    options: Any,
    bytes_per_row: int,
) -> list[Row]:
    """Measure ``calls`` and make lines of them."""
    dim, k = data.x.shape[1], len(data.centroids)
    results = []
    for method, (timing, wrong) in methods.measure(calls, sizes, data.truth, options).items():
        kind = "ours" if method.startswith(OURS) else "peer"
        fp32_only = bool(options.held) or method.endswith(NO_TILES)
        results.append(
            Row(
                section, name, dim, k, method, kind, torch.get_num_threads(), options.held,
                timing.minimum / sizes[method] * 1e9, timing.median / sizes[method] * 1e9,
                len(timing.seconds), sizes[method], wrong,
                limits.ns_per_row(bytes_per_row + ID_BYTES, dim, k, bf16=not fp32_only),
            )
        )  # fmt: skip
    peers = [r.ns_per_row for r in results if r.kind == "peer"]
    for row in results:
        row.ratio_to_best_peer = min(peers) / row.ns_per_row if peers else float("nan")
        say(
            f"  {row.method:<34} {row.ns_per_row:12,.1f} ns/row  x{row.ratio_to_best_peer:6.2f}  "
            f"wrong {row.wrong_ids} of {row.rows:,}"
        )
    return results


FP32_ISAS = ("generic", "avx2", "avx512")  # their filter is float32
NO_TILES = tuple(f", {isa}" for isa in (*FP32_ISAS, "avx512_vnni"))  # no matrix unit


def one_row_calls(options: Any) -> list[dict[str, Any]]:
    """µs of a call with one row: the price of a call, centroids prepared each time where needed."""
    table = []
    for dim, k in ((48, 50), (48, 512), (384, 1000), (768, 100), (768, 1000)):
        generator = torch.Generator().manual_seed(0)
        x, c = torch.randn(1, dim, generator=generator), torch.randn(k, dim, generator=generator)
        calls: dict[str, Callable[[], Any]] = {OURS: partial(ops.nearest_centroid, x, c)}
        for name, (peer, assign) in methods.ready_peers(c, options).items():
            if peer.key in ("sklearnex", "faiss", "sklearn", "torch", "cdist", "scipy"):
                calls[name] = partial(assign, x)
        timings = interleave(calls, rounds=5, min_seconds=0.02)
        table += [
            {"section": "one row", "dim": dim, "num_centroids": k, "method": name,
             "us": timing.minimum * 1e6, "threads": torch.get_num_threads()}
            for name, timing in timings.items()
        ]  # fmt: skip
    return table


def check_every_path(store: Store, names: list[str]) -> list[dict[str, Any]]:
    """Wrong ids of every usable ISA path on ALL rows, ``nearest_centroid`` and ``patch_tokens``."""
    table = []
    for name in names:
        workload = WORKLOADS[name]
        data = store.load(workload)
        checks = {"nearest_centroid": partial(ops.nearest_centroid, data.x, data.centroids)}
        if workload.features == "patches":
            checks["patch_tokens"] = partial(tokens, data, workload.source)
        for isa in ("auto", *(n for n, state in isa_paths().items() if state == "usable")):
            for op, call in checks.items():
                wrong = int((methods.forced(isa, call)().numpy() != data.truth).sum())
                say(f"  {name} {op} {isa}: {wrong} wrong ids of {len(data.truth):,}")
                table.append(
                    {"section": "check", "workload": name, "op": op, "isa": isa,
                     "wrong_ids": wrong, "rows": len(data.truth)}
                )  # fmt: skip
    return table
