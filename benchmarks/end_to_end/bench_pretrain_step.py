"""Images a second of one pretraining step, by part, beside the bare model and an MAE-style loop.

    python -m benchmarks.end_to_end.bench_pretrain_step [--cases vit_small cifar] [--json FILE]

A step is the driver's own (`train/step.py`), on made-up decoded images: data (crops), mask, tokens,
pixels (float, mean and std), encoder, decoder, loss (with the head), backward, optimizer. The parts
are the intervals between marks of one clock, so that they add up to the step; in a run a thread
makes the next batch meanwhile, and "data" is what it takes, not what the run waits.

Beside it, in turn, round by round: the same model's forward and backward alone on a ready batch,
and a loop as MAE's paper describes it, in plain PyTorch on timm's blocks: crops by torchvision one
image at a time, noise sorted for the mask, the loss read back at every step.

    pytest benchmarks/end_to_end/bench_pretrain_step.py --benchmark-enable

On CUDA the marks are events in the stream (bfloat16 autocast). That has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.transforms import v2

from benchmarks.end_to_end.clock import Clock
from benchmarks.harness import limited_threads, machine, markdown_table, write_json
from clustermim_fast.data import IMAGENET_MEAN, IMAGENET_STD, DataConfig, ImageSet
from clustermim_fast.data.store import MemoryStore
from clustermim_fast.losses import LossConfig
from clustermim_fast.masking import MaskConfig, Masker, Masks
from clustermim_fast.models import ModelConfig, create_model
from clustermim_fast.models.positions import sincos_positions
from clustermim_fast.optim import OptimConfig, create_optimizer, set_learning_rate
from clustermim_fast.patch_grid import patchify
from clustermim_fast.recipes.small import SMALL_VIT
from clustermim_fast.tokenizers import PixelTokenizer
from clustermim_fast.train.step import forward_step

PARTS = ("data", "mask", "copy", "tokens", "pixels", "encoder", "decoder", "loss",
         "forward", "backward", "optimizer")  # fmt: skip
BARE = "bare model, forward and backward"
LR = 1e-4
Step = Callable[[], dict[str, float]]
"""One step: seconds of its parts, and their sum as "step"."""


@dataclass(frozen=True)
class Case:
    """A network, its images (`stored` pixels on a side, cropped to `side`) and a batch."""

    model: ModelConfig
    side: int
    stored: int
    batch: int
    clusters: int


CASES = {
    "vit_small": Case(ModelConfig(encoder="vit_small_patch16_224"), 224, 256, 8, 100),
    "cifar": Case(SMALL_VIT, 32, 32, 128, 50),
}


class Ours:
    """The driver's step with marks between its parts; no other difference."""

    def __init__(self, method: str, case: Case, images: Tensor, device: torch.device) -> None:
        self.case, self.device, self.clock = case, device, Clock(device)
        sizes = (case.side, case.side)
        self.images = ImageSet(MemoryStore.from_tensor(images), sizes)
        self.model = create_model(method, case.model, sizes, case.clusters, seed=0).to(device)
        self.model.train()
        self.optimizer = create_optimizer(self.model, OptimConfig())
        patch = self.model.patch_size
        self.masker = Masker(MaskConfig("random", 0.75), self.model.grid, patch)
        self.mean, self.std = (
            torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        self.tokenizer: Any = None
        if method == "clustermim":
            views = self.images.images(np.arange(len(images)))
            fit = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "max_iter": 1}
            tokenizer = PixelTokenizer.fit(views, case.clusters, patch, **fit)
            self.tokenizer = self.clock.around(tokenizer.to(device), "", "tokens")
        self.encode, self.decode = self.model.encode, self.model.decode
        self.count = 0

    def batch(self, marks: Clock | None = None) -> tuple[Tensor, Masks]:
        """Crops and masks on the device."""
        keys = (self.count * self.case.batch + np.arange(self.case.batch)) % len(self.images)
        self.count += 1
        crops = self.images.crops(0, self.count, keys, DataConfig())
        if marks:
            marks.mark("data")
        drawn = self.masker(0, self.count, keys)
        if marks:
            marks.mark("mask")
        masks = Masks(*(None if part is None else part.to(self.device) for part in drawn))
        return crops.to(self.device), masks

    def step(self) -> dict[str, float]:
        """Seconds of each part of one step."""
        clock, model = self.clock, self.model
        model.encode = clock.around(self.encode, "pixels", "encoder")
        model.decode = clock.around(self.decode, "", "decoder")
        clock.mark()
        images, masks = self.batch(clock)
        clock.mark("copy")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = forward_step(
                model, self.tokenizer, images, masks, self.mean, self.std, LossConfig()
            ).loss
        clock.mark("loss")
        loss.backward()
        clock.mark("backward")
        set_learning_rate(self.optimizer, LR)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.mark("optimizer")
        model.encode, model.decode = self.encode, self.decode
        return clock.seconds()

    def bare(self) -> Step:
        """The model's forward and backward on one ready batch, and nothing else."""
        images, masks = self.batch()
        pixels = (images.float() / 255 - self.mean) / self.std
        clock = Clock(self.device)

        def call() -> dict[str, float]:
            clock.mark()
            cuda = self.device.type == "cuda"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):
                hidden = self.model(pixels, masks.mask, masks.visible)
            clock.mark("forward")
            hidden.backward(torch.ones_like(hidden))
            clock.mark("backward")
            self.model.zero_grad(set_to_none=True)
            return clock.seconds()

        return call


class Reference(nn.Module):
    """MAE by its paper's description: sort noise, keep a quarter, mask tokens, unsort, pixels."""

    def __init__(self, case: Case, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        options = case.model.timm_options()
        self.vit = timm.create_model(
            case.model.encoder, img_size=case.side, num_classes=0, **options
        )
        width, self.p = self.vit.embed_dim, self.vit.patch_embed.patch_size[0]
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = sincos_positions(self.vit.patch_embed.grid_size, dim, 1)
        self.register_buffer("positions", positions[None])
        self.blocks = nn.Sequential(*[Block(dim, heads, qkv_bias=True) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 3 * self.p**2)

    def forward(self, images: Tensor) -> Tensor:
        """Mean squared error of hidden pixels."""
        vit = self.vit
        x = vit.patch_embed(images) + vit.pos_embed[:, 1:]
        (batch, length, width), keep = x.shape, x.shape[1] // 4
        order = torch.rand(batch, length, device=x.device).argsort(dim=1)
        restore = order.argsort(dim=1)
        x = x.gather(1, order[:, :keep, None].expand(-1, -1, width))
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(batch, -1, -1)
        y = self.embed(vit.norm(vit.blocks(torch.cat([first, x], dim=1))))
        hidden = self.mask_token.expand(batch, length - keep, -1).to(y.dtype)
        patches = torch.cat([y[:, 1:], hidden], dim=1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, y.shape[-1]))
        y = torch.cat([y[:, :1], patches], dim=1) + self.positions
        predicted = self.head(self.norm(self.blocks(y)))[:, 1:]
        error = (predicted.float() - patchify(images, self.p)).square().mean(dim=-1)
        mask = (restore >= keep).float()
        return (error * mask).sum() / mask.sum()


def reference_loop(case: Case, ours: nn.Module, images: Tensor, device: torch.device) -> Step:
    """A step of the plain loop; the sizes of the decoder are those of `ours`."""
    blocks = ours.decoder_blocks
    model = Reference(case, ours.head.in_features, len(blocks), blocks[0].attn.num_heads)
    model.to(device).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    cubic = v2.InterpolationMode.BICUBIC
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(case.side, (0.2, 1.0), interpolation=cubic),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    clock, number = Clock(device), itertools.count()

    def step() -> dict[str, float]:
        clock.mark()
        first = next(number) * case.batch
        rows = [(first + i) % len(images) for i in range(case.batch)]
        batch = torch.stack([transform(images[i]) for i in rows])
        clock.mark("data")
        batch = batch.to(device)
        clock.mark("copy")
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(batch)
        loss.item()  # as such loops do, for their log
        clock.mark("forward")
        loss.backward()
        clock.mark("backward")
        optimizer.step()
        optimizer.zero_grad()
        clock.mark("optimizer")
        return clock.seconds()

    return step


def methods_of(case: Case, device: torch.device) -> dict[str, Step]:
    """What is compared, by name; each call is one step."""
    torch.manual_seed(0)
    blots = torch.rand(max(64, case.batch), 3, case.stored // 8, case.stored // 8)
    smooth = nn.functional.interpolate(blots, scale_factor=8.0, mode="bilinear")
    images = (smooth * 255).to(torch.uint8)
    tokens, pixels = (Ours(name, case, images, device) for name in ("clustermim", "mae"))
    return {
        "clustermim": tokens.step,
        "mae": pixels.step,
        BARE: pixels.bare(),
        "MAE-style loop": reference_loop(case, pixels.model, images, device),
    }


def measure(case: Case, device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each part by method, of its fastest step."""
    methods = methods_of(case, device)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    names = list(methods)
    for number in range(rounds + 1):  # the first warms up
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = methods[name]()
            if number:
                found[name].append(seconds)
    return {name: min(taken, key=lambda parts: parts["step"]) for name, taken in found.items()}


def table(rows: dict[str, dict[str, float]], batch: int) -> str:
    """Images/s of the step, its time by part in ms, and as a multiple of the bare model's."""
    lines = []
    for method, parts in rows.items():
        step = parts["step"]
        ms = [f"{parts[n] * 1e3:.1f}" if n in parts else "" for n in PARTS]
        lines.append([method, f"{batch / step:.1f}", f"{step / rows[BARE]['step']:.2f}", *ms])
    return markdown_table(["step of", "images/s", "bare = 1", *(f"{n}, ms" for n in PARTS)], lines)


def main() -> None:
    """Print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    with limited_threads(options.threads):
        for name in options.cases:
            rows = measure(CASES[name], torch.device(options.device), options.rounds)
            print(f"\n{name}, batch {CASES[name].batch}\n")
            print(table(rows, CASES[name].batch), flush=True)
            results.append({"case": name, "batch": CASES[name].batch, "seconds": rows})
    print(machine(), f"{options.threads} threads, {options.device}")
    if options.json:
        write_json(options.json, results)


@pytest.mark.parametrize("method", ["clustermim", "mae"])
def test_step_speed(benchmark, method):
    case = Case(SMALL_VIT, 32, 32, 16, 50)
    benchmark(methods_of(case, torch.device("cpu"))[method])


if __name__ == "__main__":
    main()
