"""`evaluate finetune`: the whole encoder trained on labels, beside the same network from its random
initialisation under the same settings.

There is no epoch to choose: the last weights (or their average) are evaluated, once. Where several
learning rates are given, the best on held-out training images is trained again on all of them.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from .features import normalise
from .finetune_training import FinetuneTraining, TrainingImages, fine_tune, predict
from .protocol import FeatureOptions
from .result import Row, assemble, score
from .rows import Subject
from .shots import check_seeds, draw_shots
from .split import hold_out

__all__ = ["FinetuneSettings", "finetune"]


@dataclass(frozen=True)
class FinetuneSettings:
    """What is fine-tuned.

    Attributes:
        learning_rates: base rates for 256 images (MAE: 0.0005); several are compared.
        baseline: also train the random initialisation.
        shots: "10%" or "5" of each class are the training images; "" all.
        seeds: how often all is repeated, from ``seed`` on.
        held_out: share of the training images on which rates are compared; with one rate, none.
        training: everything else.
    """

    learning_rates: tuple[float, ...] = (5e-4,)
    baseline: bool = True
    shots: str = ""
    seeds: int = 1
    seed: int = 0
    held_out: float = 0.2
    training: FinetuneTraining = field(default_factory=FinetuneTraining)

    def __post_init__(self) -> None:
        rates = self.learning_rates
        if not rates or len(set(rates)) != len(rates) or not all(0 < r < 1e3 for r in rates):
            raise ValueError(
                f"learning_rates: expected one or more different positive numbers, got {rates}"
            )


def finetune(
    subject: Subject,
    settings: FinetuneSettings | None = None,
    *,
    options: FeatureOptions | None = None,
) -> dict[str, Any]:
    """Test accuracy after fine-tuning each encoder of the subject (the encoders stay as they are).

    ``subject.train.images`` must have ``crops`` (see `TrainingImages`). Of ``options``, pool says
    what the classifier reads ("mean" or "cls", behind the final norm), and batch_size is that of
    the test images. Returns a JSON-ready dict as `linear` does. Raises ValueError as `fine_tune`
    does, and for fewer than two classes, or fewer training images than seeds.
    """
    start = time.perf_counter()
    settings, options = settings or FinetuneSettings(), options or FeatureOptions()
    labels = subject.train.labels
    if len(labels.unique()) < 2:
        raise ValueError("train_labels: expected at least two classes, got one")
    check_seeds(settings.seeds, len(labels))
    seeds = range(settings.seed, settings.seed + settings.seeds)
    picks = [draw_shots(labels, settings.shots, seed) for seed in seeds]
    rows: list[Row] = []
    correct: dict[str, NDArray[np.bool_]] = {}
    for name, encoder in subject.encoders.items():
        if rows and not settings.baseline:
            continue
        fits = [
            _fit(encoder, subject, pick, settings, options, seed, name)
            for pick, seed in zip(picks, seeds, strict=True)
        ]
        models = [fit[0] for fit in fits]
        predicted = _predict(models, subject, options, name if options.progress else None)
        correct[name] = predicted == subject.test.labels.numpy()
        width = models[0].get_classifier().in_features  # type: ignore[operator]
        rows.append(
            {
                "name": name,
                "dim": width,
                **score(correct[name]),
                "parameters": sum(p.numel() for p in models[0].parameters()),
                "learning_rate": [fit[1] for fit in fits],
                "held_out_train_accuracy_percent": [fit[2] for fit in fits],
            }
        )
    plain = json.loads(json.dumps(asdict(settings)))  # tuples as the lists that a file gives back
    seconds = time.perf_counter() - start
    result = assemble("finetune", subject, rows, correct, plain, options.pool, seconds)
    return result | {"train_images": len(picks[0])}


def _fit(
    encoder: nn.Module,
    subject: Subject,
    rows: Tensor,
    settings: FinetuneSettings,
    options: FeatureOptions,
    seed: int,
    name: str,
) -> tuple[nn.Module, float, dict[str, float]]:
    """(model trained on all rows, its rate, held-out accuracy by rate)."""
    labels = subject.train.labels

    def train(chosen: Tensor, rate: float) -> nn.Module:
        return fine_tune(
            encoder,
            cast("TrainingImages", subject.train.images),
            labels,
            chosen,
            settings.training,
            base_rate=rate,
            classes=len(subject.class_names),
            mean=subject.mean,
            std=subject.std,
            pool=options.pool,
            seed=seed,
            device=options.device,
            title=f"{name}: base learning rate {rate:g}" if options.progress else None,
        )

    scores: dict[str, float] = {}
    best = settings.learning_rates[0]
    if len(settings.learning_rates) > 1:
        split = hold_out(labels[rows].numpy(), settings.held_out, seed, "learning rate")
        fit_rows, check_rows = (rows[torch.from_numpy(part)] for part in split)
        shares = []
        for rate in settings.learning_rates:
            model = train(fit_rows, rate)
            found = torch.cat(
                [
                    predict(model, _view(subject, subject.train.images.images(part)))
                    for part in check_rows.split(options.batch_size)
                ]
            )
            shares.append(float((found == labels[check_rows]).double().mean()))
            scores[f"{rate:g}"] = 100 * shares[-1]
        best = settings.learning_rates[int(np.argmax(shares))]
    return train(rows, best), best, scores


def _predict(
    models: list[nn.Module], subject: Subject, options: FeatureOptions, title: str | None
) -> NDArray[np.int64]:
    """Predicted classes by seed, int64 [seeds, M]: one pass over the test images."""
    images = subject.test.images
    parts = []
    starts = range(0, len(images), options.batch_size)
    for start in tqdm(starts, title and f"{title} (test)", disable=title is None, leave=False):
        rows = torch.arange(start, min(start + options.batch_size, len(images)))
        x = _view(subject, images.images(rows))
        parts.append(torch.stack([predict(model, x) for model in models]))
    found: NDArray[np.int64] = torch.cat(parts, 1).numpy()
    return found


def _view(subject: Subject, images: Tensor) -> Tensor:
    return normalise(images, subject.mean, subject.std)
