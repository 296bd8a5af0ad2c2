"""What a checkpoint of a run holds, and whether a run may go on from one."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.amp import GradScaler

from clustermim_fast.checkpoint import keep_newest, load_checkpoint, save_checkpoint
from clustermim_fast.optim import create_optimizer
from clustermim_fast.ranks import everyone
from clustermim_fast.train.batches import Plan
from clustermim_fast.train.config import TrainConfig, to_dict
from clustermim_fast.train.log import Window
from clustermim_fast.train.overrides import from_dict
from clustermim_fast.train.precision import make_scaler
from clustermim_fast.train.sharding import (
    is_sharded,
    load_optimizer,
    model_state,
    optimizer_state,
    shard,
)
from clustermim_fast.train.step import ModelWithLoss


@dataclass
class TrainState:
    """All that changes while a run goes on. No random state: randomness is a function of steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    window: Window
    scaler: GradScaler
    step: int = 0
    skipped: int = 0  # updates left out, see optim.skip_nonfinite
    overflows: int = 0  # updates that the scaler left out
    last_row: dict[str, Any] = field(default_factory=dict)


def save_state(state: TrainState, config: TrainConfig, fingerprint: str, plan: Plan) -> Path:
    """Write checkpoints/last.pt, and epoch_NNNN.pt beside it at the end of an epoch.

    All ranks call it, rank 0 writes; the file does not tell how many there were.
    """
    folder = Path(config.out) / "checkpoints"
    last = folder / "last.pt"
    steps_per_epoch = plan.steps_per_epoch
    content = {
        "config": to_dict(config),
        "tokenizer": fingerprint,
        "num_images": plan.num_samples,
        "step": state.step,
        "skipped": state.skipped,
        "overflows": state.overflows,
        "scaler": state.scaler.state_dict(),
        "epoch": state.step // steps_per_epoch,
        "model": model_state(state.model),
        "ema": None if state.ema is None else model_state(state.ema.module),
        "optimizer": optimizer_state(state.model, state.optimizer),
        "window": state.window.of_all().state(),
        "last_row": state.last_row,
    }
    if everyone().rank > 0:
        return last
    save_checkpoint(last, content)
    if config.log.keep > 0 and state.step % steps_per_epoch == 0:
        kept = folder / f"epoch_{state.step // steps_per_epoch:04d}.pt"
        kept.unlink(missing_ok=True)
        try:
            # last.pt is replaced, never changed, so the name keeps this content.
            os.link(last, kept)
        except OSError:
            shutil.copyfile(last, kept)
        keep_newest(folder, "epoch_*.pt", config.log.keep)
    return last


def begin(
    config: TrainConfig,
    objective: ModelWithLoss,
    window: Window,
    checkpoint: dict[str, Any] | None,
    device: torch.device,
) -> TrainState:
    """The state of a run's first step, or of a checkpoint; `objective` is sharded where the config
    says so: after its weights are loaded, and before there is an optimizer of them.
    """
    model, decay = objective.model, config.optim.ema_decay
    sharded = is_sharded(config)
    # One by one: buffers are not sharded, and no operation takes both kinds.
    ema = ModelEmaV3(model, decay=decay, foreach=not sharded) if decay else None
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        if ema is not None:
            ema.module.load_state_dict(checkpoint["ema"])
    if sharded:
        shard(objective, device)
        if ema is not None:
            shard(ema.module, device)
    scaler = make_scaler(config.efficiency.amp, device)
    state = TrainState(model, create_optimizer(model, config.optim), ema, window, scaler)
    if checkpoint is not None:
        load_optimizer(model, state.optimizer, checkpoint["optimizer"])
        window.load_state(checkpoint["window"])
        state.step = int(checkpoint["step"])
        state.skipped = int(checkpoint.get("skipped", 0))
        state.overflows = int(checkpoint.get("overflows", 0))
        if checkpoint.get("scaler"):  # of a run in float16
            scaler.load_state_dict(checkpoint["scaler"])
        state.last_row = dict(checkpoint["last_row"])
    return state


def find_checkpoint(
    config: TrainConfig, fingerprint: str | None, num_images: int
) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None to begin anew.

    `fingerprint` is the tokenizer's, None where there is none yet: then the rest is compared.

    Raises:
        ValueError: resume="must" and there is none; or there is one of another config (the
            settings that differ are named), tokenizer or number of images.
    """
    out = Path(config.out)
    last = out / "checkpoints" / "last.pt"
    if config.resume == "restart":
        return None
    if not last.exists():
        if config.resume == "must":
            raise ValueError(f"resume=must: there is no checkpoint at {last}")
        return None
    checkpoint = load_checkpoint(last)
    there, here = from_dict(checkpoint["config"]).identity(), config.identity()
    if fingerprint is None and config.tokenizer.path:  # K is the file's, not the setting's
        here["tokenizer"]["num_clusters"] = there["tokenizer"]["num_clusters"]
    differences = _differences(there, here)
    if not differences and fingerprint not in (None, checkpoint["tokenizer"]):
        differences = [f"tokenizer {checkpoint['tokenizer']} there, {fingerprint} here"]
    num_there = checkpoint.get("num_images", num_images)
    if num_there != num_images:
        differences.append(f"{num_there} images there, {num_images} here")
    if differences:
        raise ValueError(
            f"{out} holds a run with other settings, and going on from it would mix the two: "
            f"{'; '.join(differences)}. Choose another out=, or resume=restart to delete its "
            "checkpoints and evaluations"
        )
    return checkpoint


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name in sorted(there.keys() | here.keys()):
        a, b = there.get(name), here.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name} {a!r} there, {b!r} here")
    return lines
