"""CCViT's claim, measured: a k-means codebook costs next to nothing beside a trained tokenizer.

    python -m benchmarks.codebook_claim --data ../shared/data [--json FILE]

Seconds to fit a codebook of K = 8192 pixel centroids on the ImageNet sample (20 Lloyd iterations),
and tokens a second of `patch_tokens` from uint8 images, beside the forward passes that a parametric
tokenizer needs for the same 196 tokens an image, at random weights: a ViT-S/16 (features to be
clustered), a ViT-B/16 encoder with a quantiser of 8192 codes of width 32 (as VQ-KD's in BEiT v2),
and a convolutional encoder with 8192 logits (as DALL-E's dVAE, at 112 x 112 as BEiT runs it).
float32, and bfloat16 autocast. Their training, days on GPUs, is not measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import cache
from benchmarks.harness import (
    interleave,
    limited_threads,
    machine,
    markdown_table,
    say,
    write_json,
)
from benchmarks.workloads import IMAGENET, Store, normalised
from clustermim_fast import ops
from clustermim_fast.tokenizers import PixelTokenizer

CODES, TOKENS = 8192, 196
PIXELS: dict[str, Any] = dict(mean=IMAGENET.mean, std=IMAGENET.std, patch_order="chw")  # CCViT's


class QuantisingViT(nn.Module):
    """A ViT-B/16, two linear layers to width 32, the nearest of 8192 unit codes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model("vit_base_patch16_224", num_classes=0)
        width = self.encoder.num_features
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 32))
        self.codes = nn.Parameter(F.normalize(torch.randn(CODES, 32), dim=1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, 224, 224] -> ids [B, 196]."""
        features = self.head(self.encoder.forward_features(pixels)[:, 1:])
        return (F.normalize(features, dim=-1) @ self.codes.T).argmax(-1)


class ConvBlock(nn.Module):
    """A residual block with a bottleneck of a quarter: three 3 x 3 convolutions and a 1 x 1."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        hidden = outputs // 4
        self.gain = gain
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        layers: list[nn.Module] = []
        for before in (inputs, hidden, hidden):
            layers += [nn.ReLU(), nn.Conv2d(before, hidden, 3, padding=1)]
        self.residual = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(hidden, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return self.skip(x) + self.gain * self.residual(x)


class ConvEncoder(nn.Module):
    """Four groups of two blocks, widths 256 x (1, 2, 4, 8), halved between them; 8192 logits."""

    def __init__(self, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        gain = 1 / (4 * blocks) ** 2
        layers: list[nn.Module] = [nn.Conv2d(3, width, 7, padding=3)]
        before = width
        for group, factor in enumerate((1, 2, 4, 8)):
            for _ in range(blocks):
                layers.append(ConvBlock(before, factor * width, gain))
                before = factor * width
            if group < 3:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(before, CODES, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, 112, 112] -> ids [B, 196]."""
        return self.layers(pixels).argmax(1).flatten(1)


class Features(nn.Module):
    """A ViT-S/16's patch tokens: what a feature tokenizer clusters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model("vit_small_patch16_224", num_classes=0)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, 224, 224] -> [B, 196, 384]."""
        return self.encoder.forward_features(pixels)[:, 1:]


ENCODERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ViT-S/16 forward (features)": (Features, 224),
    "VQ-KD-like ViT-B/16 encoder": (QuantisingViT, 224),
    "dVAE-like CNN encoder, 112 px": (ConvEncoder, 112),
}


@torch.inference_mode()
def forward(model: nn.Module, pixels: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = model(pixels)
    assert found.shape[:2] == (len(pixels), TOKENS)
    return found


def measure(images: Tensor, centroids: Tensor, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens a second of each, interleaved; the encoders start from normalised float images."""
    torch.manual_seed(0)
    few = normalised(images[: options.batch], IMAGENET)
    small = F.interpolate(few, 112, mode="bilinear", antialias=True)
    many = images[: options.token_images]
    ours = f"patch_tokens, uint8 images, K = {len(centroids)}"
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        (ours, "exact"): partial(ops.patch_tokens, many, centroids, 16, **PIXELS)
    }
    sizes = {(ours, "exact"): len(many)}
    parameters = {}
    for name, (make, size) in ENCODERS.items():
        model = make().eval()
        parameters[name] = sum(p.numel() for p in model.parameters())
        for precision in ("float32", "bfloat16"):
            pixels = few if size == 224 else small
            calls[name, precision] = partial(forward, model, pixels, precision == "bfloat16")
            sizes[name, precision] = len(pixels)
    named = {f"{name}|{precision}": call for (name, precision), call in calls.items()}
    timings = interleave(named, rounds=options.rounds, max_seconds=options.max_seconds)
    table = []
    for (name, precision), size in sizes.items():
        timing = timings[f"{name}|{precision}"]
        table.append(
            {
                "encoder": name,
                "precision": precision,
                "million_parameters": parameters.get(name, centroids.numel()) / 1e6,
                "tokens_per_s": size * TOKENS / timing.minimum,
                "images_per_s": size / timing.minimum,
                "rounds": len(timing.seconds),
            }
        )
    for line in table:
        line["times_slower"] = table[0]["tokens_per_s"] / line["tokens_per_s"]
    return table


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the image archives")
    parser.add_argument("--cache", type=Path, default=cache.DEFAULT, help="default %(default)s")
    parser.add_argument("--images", type=int, help="of the sample; default all 1000")
    parser.add_argument("--iterations", type=int, default=20, help="of Lloyd")
    parser.add_argument("--clusters", type=int, default=CODES)
    parser.add_argument("--token-images", type=int, default=200, help="for patch_tokens")
    parser.add_argument("--batch", type=int, default=8, help="images of an encoder's batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-seconds", type=float, default=20.0, help="of one encoder")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    images = Store(options.data, options.cache, options.images).images(IMAGENET)
    with limited_threads(options.threads):
        say(f"fitting K = {options.clusters} on {len(images)} images")
        start = time.perf_counter()
        tokenizer = PixelTokenizer.fit(
            images, options.clusters, 16, **PIXELS,
            algorithm="lloyd", init="random", max_iter=options.iterations, tol=0.0, seed=0,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        say(f"{seconds:.1f} s; forward passes")
        table = measure(images, tokenizer.centroids, options)
    report = tokenizer.report
    iterations = len(report.iterations)
    lloyd = sum(iteration.seconds for iteration in report.iterations)
    print(
        f"PixelTokenizer.fit, K = {options.clusters}, {len(images) * TOKENS:,} patches, "
        f"{iterations} iterations, {options.threads} threads: {seconds:.1f} s "
        f"({lloyd:.1f} s of them iterations, the rest the start and the last pass)\n"
    )
    header = ("tokens by", "precision", "M numbers", "tokens/s", "images/s", "x slower", "rounds")
    lines = [
        (
            r["encoder"], r["precision"], f"{r['million_parameters']:.1f}",
            f"{r['tokens_per_s']:,.0f}", f"{r['images_per_s']:,.1f}", f"{r['times_slower']:.1f}",
            r["rounds"],
        )
        for r in table
    ]  # fmt: skip
    print(markdown_table(header, lines))
    print(machine())
    if options.json:
        fit = {"fit_seconds": seconds, "lloyd_seconds": lloyd, "iterations": iterations,
               "clusters": options.clusters, "images": len(images)}  # fmt: skip
        write_json(options.json, [fit, *table])


if __name__ == "__main__":
    main()
