"""Images a second of a pretraining step at 224 px: ViT-S and ViT-B, our kernels and plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_suite import images as pictures
from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.cases import one_line
from benchmarks.gpu_suite.journal import Journal
from clustermim_fast import ops

MODELS = {"vit_small_patch16_224": 512, "vit_base_patch16_224": 256}  # images a step
CLUSTERS = (50, 8192)


def make_step(bench: Bench, encoder: str, batch: int, clusters: int) -> Callable[[], Any]:
    """An optimiser step on images on the device: tokens, bf16 forward, backward, AdamW."""
    from clustermim_fast.losses import LossConfig
    from clustermim_fast.masking import Masks
    from clustermim_fast.models import ModelConfig, create_model
    from clustermim_fast.tokenizers import PixelTokenizer
    from clustermim_fast.train.step import forward_step

    device, p = bench.device, 16
    side = bench.size(224, 32)
    images = pictures.load(bench, "photographs", batch)[:, :, :side, :side].contiguous()
    x = pictures.rows(images, p, device, torch.float32)
    c = pictures.centroids(x, min(clusters, len(x) // 2), iterations=1).cpu()
    tokenizer = PixelTokenizer.from_centroids(
        c.numpy(), p, patch_order="hwc", mean=pictures.MEAN, std=pictures.STD
    ).to(device)
    small = {"embed_dim": 32, "num_heads": 2, "depth": 1} if bench.rehearsed else {}
    config = ModelConfig(encoder=encoder, patch_size=p, decoder_dim=bench.size(256, 32),
                         decoder_depth=bench.size(8, 1), decoder_heads=bench.size(8, 2),
                         **small)  # fmt: skip
    model = create_model("clustermim", config, (side, side), len(c), seed=0).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    mean, std = (
        torch.tensor(v, device=device)[:, None, None] for v in (pictures.MEAN, pictures.STD)
    )
    images = images.to(device)
    length = (side // p) ** 2
    order = torch.rand(batch, length, device=device).argsort(1)
    mask = torch.ones(batch, length, dtype=torch.bool, device=device)
    visible = order[:, : length // 4].sort(1).values
    mask.scatter_(1, visible, False)
    masks = Masks(mask, visible, None)

    def step() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            result = forward_step(model, tokenizer, images, masks, mean, std, LossConfig())
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return result.loss.detach()

    return step


def run(bench: Bench, journal: Journal) -> None:
    for encoder, images in MODELS.items():
        for clusters in CLUSTERS:
            batch, clusters = bench.size(images, 2), bench.size(clusters, 4)
            name = f"{encoder}, {batch} images a step, K {clusters}"
            if journal.finished(name):
                continue
            _case(bench, journal, name, lambda b=batch, k=clusters, e=encoder: make_step(
                bench, e, b, k), batch)  # fmt: skip
            journal.write("finished", case=name)


def _case(bench: Bench, journal: Journal, name: str, make: Callable[[], Any], batch: int) -> None:
    """Both back-ends in turn, on one model."""
    journal.write("trying", case=name, method="ours")
    try:
        step = make()
    except Exception as error:  # noqa: BLE001  a row with its reason
        journal.write("failed", case=name, method="ours", reason=one_line(error))
        return

    def on(backend: str) -> Callable[[], Any]:
        def call() -> Any:
            with ops.use_backend(backend):
                return step()

        return call

    calls = {}
    for method, backend in (("plain torch", "reference"), ("ours", "triton")):
        if journal.failure(name, method):
            continue
        journal.write("trying", case=name, method=method)
        try:
            start = time.perf_counter()
            loss = float(on(backend)())
            facts = {"first_call_s": time.perf_counter() - start, "first_loss": loss}
            calls[method] = (on(backend), facts)
        except Exception as error:  # noqa: BLE001
            journal.write("failed", case=name, method=method, reason=one_line(error))
        journal.write("ready", case=name, method=method)
    times = bench.interleave({m: call for m, (call, _) in calls.items()}, rounds=10, seconds=4.0)
    for method, (_, facts) in calls.items():
        ms = sorted(times[method])[len(times[method]) // 2]
        journal.row(case=name, method=method, ms=ms, images_per_s=1e3 * batch / ms, **facts)
