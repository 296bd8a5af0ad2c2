"""Fine-tuning of one encoder: layer decay, mixup, cutmix and EMA are timm's."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from timm.data.mixup import Mixup
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from clustermim_fast.data import DataConfig
from clustermim_fast.optim import learning_rate, set_learning_rate

from .features import Images, normalise

__all__ = ["FinetuneTraining", "TrainingImages", "fine_tune", "predict"]

GLOBAL_POOL = {"mean": "avg", "cls": "token"}


class TrainingImages(Images, Protocol):
    """Images that can be cropped for training; `clustermim_fast.data.ImageSet` can."""

    def crops(
        self, seed: int, epoch: int, indices: Tensor | ArrayLike, config: DataConfig
    ) -> Tensor:
        """uint8 [B, 3, H, W], a function of (seed, epoch, index)."""
        ...


@dataclass(frozen=True)
class FinetuneTraining:
    """How an encoder is fine-tuned; defaults are MAE's for ViT-B but for random augmentation,
    erasing and drop path, which are left out.

    Attributes:
        epochs, warmup_epochs: linear warm-up, then half a cosine to 0, per update. 100 epochs of
            ImageNet; on a CPU a few are what there is time for, and every encoder has the same.
        batch_size: images an update (MAE: 1,024).
        layer_decay: each layer learns this much slower than the one above it.
        weight_decay: AdamW's, on matrices only.
        mixup, cutmix: alpha of their Beta distributions, 0 for none; where both are on, half of the
            batches are mixed by either.
        label_smoothing: share of the target that is spread over all classes.
        ema_decay: the moving average of the weights that is evaluated; 0: the last weights.
        crop_scale, flip: RandomResizedCrop's share of the area, mirroring of half the crops.
    """

    epochs: int = 100
    warmup_epochs: float = 5.0
    batch_size: int = 256
    layer_decay: float = 0.65
    weight_decay: float = 0.05
    mixup: float = 0.8
    cutmix: float = 1.0
    label_smoothing: float = 0.1
    ema_decay: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"epochs, batch_size: expected at least 1 and 2, got {self.epochs}, "
                f"{self.batch_size}"
            )
        for name in ("warmup_epochs", "weight_decay", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number from 0, got {getattr(self, name)}")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected a number in (0, 1], got {self.layer_decay}")
        DataConfig(crop_scale=self.crop_scale, flip=self.flip)


def fine_tune(
    encoder: nn.Module,
    images: TrainingImages,
    labels: Tensor,
    rows: Tensor,
    training: FinetuneTraining,
    *,
    base_rate: float,
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pool: str = "mean",
    seed: int = 0,
    device: str = "cpu",
    title: str | None = None,
) -> nn.Module:
    """A copy of a timm encoder with a classifier, trained on labels of ``rows`` -> eval mode.

    Its output is logits [B, classes]. base_rate is for 256 images. Raises ValueError for fewer than
    two images, or weights that are no longer finite.
    """
    if len(rows) < 2:
        raise ValueError(f"train: expected at least two images, got {len(rows)}")
    batch_size = min(training.batch_size, len(rows))
    batch_size -= batch_size % 2  # timm's mixup pairs images
    updates = len(rows) // batch_size
    data = DataConfig(crop_scale=training.crop_scale, flip=training.flip)
    with _seeded(seed):
        model = _with_classifier(encoder, classes, pool).to(device).train()
        optimizer = torch.optim.AdamW(_groups(model, training), lr=0.0, betas=(0.9, 0.999))
        ema = ModelEmaV3(model, training.ema_decay, use_warmup=True) if training.ema_decay else None
        mix = _mixup(training, classes)
        order = torch.Generator().manual_seed(seed)
        for epoch in tqdm(range(training.epochs), title, disable=title is None, leave=False):
            shuffled = rows[torch.randperm(len(rows), generator=order)]
            for number, chosen in enumerate(shuffled.split(batch_size)[:updates]):
                step = epoch * updates + number
                rate = learning_rate(
                    step,
                    peak=base_rate * batch_size / 256,
                    floor=0.0,
                    warmup=round(min(training.warmup_epochs, training.epochs - 1) * updates),
                    total=training.epochs * updates,
                )
                set_learning_rate(optimizer, rate)
                x = normalise(images.crops(seed, epoch, chosen, data).to(device), mean, std)
                truth = labels[chosen].to(device)
                x, target = mix(x, truth) if mix else (x, truth)
                smoothing = 0.0 if mix else training.label_smoothing  # mixed targets have theirs
                loss = F.cross_entropy(model(x), target, label_smoothing=smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if ema is not None:
                    ema.update(model, step=step)
    trained = model if ema is None else ema.module
    if not all(p.isfinite().all() for p in trained.parameters()):
        raise ValueError(
            f"fine-tuning: the weights are no longer finite at learning_rates={base_rate:g}; give "
            "a smaller one"
        )
    return trained.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted class indices of normalised images, int64 [B], on the CPU."""
    device = next(model.parameters()).device
    found: Tensor = model(images.to(device)).argmax(1).cpu()
    return found


def _with_classifier(encoder: nn.Module, classes: int, pool: str) -> nn.Module:
    model: Any = copy.deepcopy(encoder).requires_grad_(True)
    if not hasattr(model, "reset_classifier"):
        raise ValueError(
            f"encoder: expected a timm model with reset_classifier, got {type(model).__name__}"
        )
    if pool not in GLOBAL_POOL:
        raise ValueError(f'pool: expected "mean" or "cls", got {pool!r}')
    if pool == "cls" and getattr(model, "cls_token", None) is None:
        raise ValueError(f'pool: expected "mean" for {type(model).__name__} without [cls]')
    model.reset_classifier(classes, GLOBAL_POOL[pool])
    head = model.get_classifier()
    nn.init.trunc_normal_(head.weight, std=2e-5)  # as MAE: the first updates keep the features
    nn.init.zeros_(head.bias)
    return cast("nn.Module", model)


def _groups(model: Any, training: FinetuneTraining) -> list[dict[str, Any]]:
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model,
        weight_decay=training.weight_decay,
        no_weight_decay_list=no_decay,
        layer_decay=training.layer_decay,
    )
    return groups


def _mixup(training: FinetuneTraining, classes: int) -> Mixup | None:
    if not training.mixup and not training.cutmix:
        return None
    return Mixup(
        mixup_alpha=training.mixup,
        cutmix_alpha=training.cutmix,
        label_smoothing=training.label_smoothing,
        num_classes=classes,
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Own random numbers for torch and for numpy, from which timm's mixup draws."""
    state = np.random.get_state()  # noqa: NPY002 - the generator that timm's mixup uses
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
