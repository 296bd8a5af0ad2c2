"""`pretrain(dry_run=True)`: five steps of a run, and what they say about all of it."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clustermim_fast.checkpoint import require_writable
from clustermim_fast.data import ImageSet
from clustermim_fast.models import create_model
from clustermim_fast.optim import learning_rate
from clustermim_fast.report import crop_sheet
from clustermim_fast.tokenizers import Tokenizer, load_tokenizer
from clustermim_fast.train import (
    LogConfig,
    RunResult,
    TrainConfig,
    needs_tokenizer,
    prepare_tokenizer,
    run,
)
from clustermim_fast.train.batches import BatchKey, Plan, TrainingBatches
from clustermim_fast.train.distributed import choose_device
from clustermim_fast.train.log import format_seconds, read_rows
from clustermim_fast.train.memory import naming_a_smaller_batch

__all__ = ["try_run"]

STEPS = 5
SHOWN = 8  # images on the sheet of crops
CROPS = 3  # of each
Say = Callable[[str], None]


def try_run(config: TrainConfig, images: ImageSet, say: Say) -> RunResult:
    """Five updates of a resolved config's run in a folder that is deleted, and a sheet of crops.

    The weights, images, masks and batches are the run's; the tokenizer is, where the run's folder
    or the config has one, and else a short fit that stands in for it. `metrics` of the result are
    what is printed; nothing is left behind but the sheet, OUT.dry_run.png.
    """
    sheet = Path(f"{Path(config.out)}.dry_run.png")  # Path: without a slash at the end
    require_writable(sheet.parent)
    plan = Plan.of_run(config, len(images))
    warmup = config.optim.warmup_steps(plan.steps_per_epoch)  # refuses one longer than the run
    steps = min(STEPS, plan.total_steps)
    peak = config.optim.absolute_lr(plan.effective_batch)

    def rate(step: int) -> float:
        floor = config.optim.min_lr
        return learning_rate(step, peak=peak, floor=floor, warmup=warmup, total=plan.total_steps)

    device = choose_device(config.efficiency.device)
    with tempfile.TemporaryDirectory() as folder:
        optim = dataclasses.replace(
            config.optim, steps=steps, warmup_epochs=None, lr=rate(steps - 1) or peak
        )
        log = LogConfig(every_steps=1, keep=0)
        short = dataclasses.replace(config, out=folder, resume="auto", optim=optim, log=log)
        tokenizer = _stand_in(config, images, say) if needs_tokenizer(config) else None
        if tokenizer is not None:
            wanted = dataclasses.replace(config.tokenizer, num_clusters=tokenizer.num_clusters)
            config = dataclasses.replace(config, tokenizer=wanted)
        say(f"{steps} steps of {plan.total_steps:,} ...")
        with naming_a_smaller_batch(config):
            result = run(short, tokenizer, images, say=lambda line: None)
        rows = read_rows(Path(folder) / "metrics.jsonl")
    speed = statistics.median(row["images_per_s"] for row in rows[1:] or rows)
    with torch.device("meta"):
        model: Any = create_model(
            config.method, config.model, images.image_size, config.tokenizer.num_clusters
        )
    encoder = sum(p.numel() for p in model.encoder.parameters())
    facts: dict[str, Any] = {
        "images_per_s": speed,
        "data_wait_pct": statistics.median(row["data_wait_pct"] for row in rows[1:] or rows),
        "eta_s": plan.total_steps * plan.effective_batch / speed,
        "total_steps": plan.total_steps,
        "peak_bytes": _peak_bytes(device),
        "first_lr": rate(0),
        "peak_lr": peak,
        "warmup_steps": warmup,
        "effective_batch": plan.effective_batch,
        "encoder_parameters": encoder,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sheet": str(sheet),
        "losses": [row["loss"] for row in rows],
    }
    sheet.parent.mkdir(parents=True, exist_ok=True)
    _draw(config, images, tokenizer, model.patch_size).save(sheet)
    for line in _lines(config, plan, facts, device):
        say(line)
    return dataclasses.replace(result, run_dir=Path(config.out), metrics=facts)


def _stand_in(config: TrainConfig, images: ImageSet, say: Say) -> Tokenizer:
    """The run's tokenizer where it is in a file; else one pass over few images."""
    if config.tokenizer.path:
        return prepare_tokenizer(config, images)
    file = Path(config.out) / "tokenizer.safetensors"
    if file.is_file():
        tokenizer = load_tokenizer(file)
        say(f"tokenizer: {file}, as it lies there")
        return tokenizer
    wanted = config.tokenizer
    height, width = images.image_size
    side = config.model.patch_size or 1
    patches = (height // side) * (width // side)
    count = min(wanted.max_images, len(images), max(64, -(-4 * wanted.num_clusters // patches)))
    quick = dataclasses.replace(
        wanted, algorithm="minibatch", init="random", max_iter=1, max_images=count
    )
    say(
        f"tokenizer: one pass over {count} images stands in for the run's, K = "
        f"{wanted.num_clusters} (`clustermim tokenizer fit` fits that)"
    )
    return prepare_tokenizer(dataclasses.replace(config, out="", tokenizer=quick), images)


def _peak_bytes(device: torch.device) -> int:
    """Most memory held so far: on CUDA by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _draw(
    config: TrainConfig, images: ImageSet, tokenizer: Tokenizer | None, patch: int
) -> Image.Image:
    """Crops and masks of the run's first images, in its first epochs."""
    batches = TrainingBatches(images, config.data, config.mask, patch, config.seed)
    ids = next(Plan.of_run(config, len(images)).keys(0)).samples[:SHOWN]
    made = [batches.make(BatchKey(epoch, ids)) for epoch in range(CROPS)]
    grid = (images.image_size[0] // patch, images.image_size[1] // patch)
    shown = [(b.images[: len(ids)], b.masks.mask[: len(ids)]) for b in made]
    replaced = [None if b.masks.replaced is None else b.masks.replaced[: len(ids)] for b in made]
    return crop_sheet(images.images(ids), shown, grid, replaced, tokenizer)


def _lines(config: TrainConfig, plan: Plan, facts: dict[str, Any], device: torch.device) -> Any:
    """What the five steps say, for a person."""
    size = facts["encoder_parameters"] / 1e6
    rest = (facts["parameters"] - facts["encoder_parameters"]) / 1e6
    memory = f"{facts['peak_bytes'] / 2**30:.2f} GiB" if facts["peak_bytes"] else "not known here"
    of = "by tensors on the device" if device.type == "cuda" else "by this process"
    length = f"{config.optim.epochs} epochs of {plan.steps_per_epoch:,} steps"
    if config.optim.steps:
        length = f"{config.optim.steps:,} steps"
    yield f"dry run: {len(facts['losses'])} steps of {plan.total_steps:,}; no run folder is made"
    yield (
        f"  speed       {facts['images_per_s']:,.4g} images/s (median after the first step), "
        f"data wait {facts['data_wait_pct']:.0f} %, on {device}"
    )
    yield (
        f"  whole run   {format_seconds(facts['eta_s'])} (h:mm:ss) for {length}, without fitting "
        "the tokenizer, checkpoints and evaluations"
    )
    yield f"  memory      {memory} at most, held {of}"
    yield (
        f"  lr          {facts['first_lr']:.2e} at step 1, {facts['peak_lr']:.2e} after "
        f"{facts['warmup_steps']:,} steps of warm-up, then to {config.optim.min_lr:.2g}; effective "
        f"batch {plan.effective_batch} ({plan.batch_size} x {plan.accumulate})"
    )
    yield f"  parameters  {size:.2f} M in the encoder, {rest:.2f} M in decoder and head"
    yield f"  loss        {' '.join(f'{value:.4f}' for value in facts['losses'])}"
    yield f"  crops       {facts['sheet']}"
