"""Optimizer, its parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """How weights are updated.

    Attributes:
        epochs: passes over the data.
        steps: updates in all, in place of `epochs`; the learning rate's schedule is as long.
        batch_size: images per forward pass.
        accumulate: forward passes per update; the effective batch is batch_size * accumulate.
        blr: base learning rate; lr = blr * effective batch / 256.
        lr: absolute learning rate; overrides `blr` where given.
        min_lr: absolute learning rate at the end of the half-cosine.
        warmup_epochs: epochs of linear warm-up; None: a tenth of the run.
        weight_decay: AdamW's, on matrices only (not on biases, norms and other 1-D parameters).
        betas: AdamW's.
        clip_grad: largest norm of the gradient; 0: none.
        mask_token_lr: learning rate of a2mim's mask token, times that of the rest (0.1 as released
            for convolutional networks).
        ema_decay: keep a moving average of the weights with this decay; 0: none.
        skip_nonfinite: leave out up to so many updates whose loss or gradient is not finite before
            the run ends; 0: none. On CUDA it makes every update wait for the device.
    """

    epochs: int = 400
    steps: int | None = None
    batch_size: int = 256
    accumulate: int = 1
    blr: float = 1e-3
    lr: float | None = None
    min_lr: float = 0.0
    warmup_epochs: float | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float = 0.0
    mask_token_lr: float = 1.0
    ema_decay: float = 0.0
    skip_nonfinite: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"optim.{name} must be at least 1, got {value}")
        for name, value in (("lr", self.lr), ("blr", self.blr)):
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"optim.{name} must be above 0 and finite, got {value}")
        for name in ("min_lr", "weight_decay", "clip_grad", "mask_token_lr"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"optim.{name} must be at least 0 and finite, got {getattr(self, name)}"
                )
        peak = self.absolute_lr(self.batch_size * self.accumulate)
        if self.min_lr > peak:
            raise ValueError(
                f"optim.min_lr must be at most the peak learning rate {peak:.6g}, got "
                f"{self.min_lr}; give a smaller one, or a larger lr"
            )
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"optim.betas must be in [0, 1), got {self.betas}")
        if self.skip_nonfinite < 0:
            raise ValueError(f"optim.skip_nonfinite must be at least 0, got {self.skip_nonfinite}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"optim.ema_decay must be in [0, 1), got {self.ema_decay}")
        epochs = math.inf if self.steps else self.epochs
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < epochs:
            raise ValueError(
                f"optim.warmup_epochs must be at least 0 and below optim.epochs = {self.epochs}, "
                f"got {self.warmup_epochs}"
            )

    def absolute_lr(self, effective_batch: int) -> float:
        """The peak learning rate."""
        return self.lr if self.lr is not None else self.blr * effective_batch / 256

    def warmup_steps(self, steps_per_epoch: int) -> int:
        """Updates until the peak learning rate; ValueError where `steps` end before it."""
        total = self.steps or self.epochs * steps_per_epoch
        if self.warmup_epochs is None:
            return round(total / 10)
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if warmup >= total:
            raise ValueError(
                f"optim.warmup_epochs = {self.warmup_epochs} are {warmup} updates, and "
                f"the run has {total}; give more steps, or warmup_epochs=none for a tenth of them"
            )
        return warmup


def learning_rate(step: int, *, peak: float, floor: float, warmup: int, total: int) -> float:
    """Learning rate of update `step` (from 0): linear from peak / warmup, then half a cosine to
    `floor`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; timm's groups leave 1-D parameters without decay, and
    those that the model names in `undecayed`.
    """
    groups = param_groups_weight_decay(
        model,
        weight_decay=config.weight_decay,
        no_weight_decay_list=getattr(model, "undecayed", ()),
    )
    if config.mask_token_lr != 1.0:
        token = getattr(model, "mask_token", None)
        for group in groups:
            group["params"] = [p for p in group["params"] if p is not token]
        if token is not None:
            group = {"params": [token], "weight_decay": 0.0, "lr_scale": config.mask_token_lr}
            groups.append(group)
    # fused: one pass over each parameter instead of ten, on the CPU as on CUDA.
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)
