"""`evaluate attentive`: probes on pooled tokens, the protocol of "Beyond [cls]" on cached tokens.

Each encoder runs once over the training images. Every seed holds out its own share of them,
sweeps the learning rates of all poolings side by side, and trains the best rate of each pooling
again on all. Only then is the test set read, once, batch by batch: nothing is chosen on it, where
the released script prints the best test epoch.

The other difference from the paper: tokens are those of one un-augmented view, not of a new crop
each epoch, which would need the network each epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .poolings import AbMILP, AbMILPSettings, MapPooling, fixed_pooling, reads_attention
from .probe import Probe, ProbeTraining, fit_probes, predict_probe
from .protocol import FeatureOptions
from .result import Row, assemble, score
from .rows import Subject
from .shots import Picked, check_seeds, draw_shots
from .split import hold_out
from .table import row_name
from .tokens import TokenBatch, TokenCache, TokenSource, cache_tokens

__all__ = ["AttentiveSettings", "attentive"]

LEARNED = ("abmilp", "map")
Watch = Callable[[str, TokenSource, dict[str, Probe]], None]


@dataclass(frozen=True)
class AttentiveSettings:
    """What is probed and how; the defaults of AbMILP and of training are the paper's.

    Attributes:
        pool: "abmilp", "map", or of `fixed_pooling`; the first is compared with the others.
        learning_rates: base rates for 256 images, swept. The paper has 0.1 alone, which its batch
            makes 6.4, for 7,000 updates; smaller batches and sets want more (10,000 CIFAR images
            and 930 updates: at least 3). For AdamW give others, around 0.001.
        shots: "10%" or "5" of each class are the training images; "" all.
        seeds: how often all is repeated, with other images (held out, and drawn where there are
            ``shots``), weights and orders.
        seed: the first of them.
        held_out: share of the training images on which rates are chosen; with one rate, none.
        layer, norm: which tokens (see `TokenSource`); the paper's have no final norm.
        abmilp: AbMILP's switches.
        training: epochs, batches, optimizer.
        cache_dtype, memory_gib, on_disk: of the cached tokens (see `cache_tokens`).
    """

    pool: tuple[str, ...] = ("abmilp", "cls", "mean")
    learning_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    shots: str = ""
    seeds: int = 1
    seed: int = 0
    held_out: float = 0.2
    layer: int = -1
    norm: bool = False
    abmilp: AbMILPSettings = field(default_factory=AbMILPSettings)
    training: ProbeTraining = field(default_factory=ProbeTraining)
    cache_dtype: str = "float16"
    memory_gib: float = 8.0
    on_disk: bool = False

    def __post_init__(self) -> None:
        for name in ("pool", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name}: expected one or more different values, got {values}")
        for name in set(self.pool) - set(LEARNED):
            fixed_pooling(name)
        if not all(0 < rate < float("inf") for rate in self.learning_rates):
            raise ValueError(
                f"learning_rates: expected positive numbers, got {self.learning_rates}"
            )
        if self.seeds < 1:
            raise ValueError(f"seeds: expected at least 1, got {self.seeds}")

    @property
    def content(self) -> str:
        """The tokens that learned poolings read: "patch", "all" or "none"."""
        if "abmilp" in self.pool:
            return self.abmilp.content
        return "patch" if "map" in self.pool else "none"


def attentive(
    subject: Subject,
    settings: AttentiveSettings | None = None,
    *,
    options: FeatureOptions | None = None,
    teacher: TokenSource | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Accuracy of probes on pooled frozen tokens, for each encoder and pooling.

    Of ``options``, pool is not used: ``settings.pool`` has the poolings. ``teacher`` (with
    attention=True) is for the pooling of that name. ``watch`` is called with each encoder's name,
    its tokens and the first seed's probes by pooling, before the next encoder.

    Returns a JSON-ready dict as `linear` does; every row has a "pooling" too, and "gain_points" has
    keys of both ("pretrained cls"). Raises ValueError
    where there are fewer than two classes, fewer training images than seeds, tokens that do not
    fit (see `cache_tokens`), or too few images to hold some out.
    """
    start = time.perf_counter()
    settings, options = settings or AttentiveSettings(), options or FeatureOptions()
    device, batch_size = options.device, options.batch_size
    if ("teacher" in settings.pool) != (teacher is not None):
        raise ValueError("teacher: expected one with pool=teacher, and only there")
    if len(subject.train.labels.unique()) < 2:
        raise ValueError("train_labels: expected at least two classes, got one")
    check_seeds(settings.seeds, len(subject.train.labels))
    seeds = range(settings.seed, settings.seed + settings.seeds)
    picks = [draw_shots(subject.train.labels, settings.shots, seed) for seed in seeds]
    used = torch.cat(picks).unique()  # ascending; the network runs over these alone
    labels, images = subject.train.labels[used], Picked(subject.train.images, used)
    fixed = {name: fixed_pooling(name) for name in settings.pool if name not in LEARNED}
    rows: list[Row] = []
    correct: dict[str, NDArray[np.bool_]] = {}
    for encoder_name, encoder in subject.encoders.items():
        source = TokenSource(
            encoder,
            subject.mean,
            subject.std,
            settings.layer,
            settings.norm,
            device,
            attention=any(reads_attention(name) for name in settings.pool),
            teacher=teacher if "teacher" in settings.pool else None,
        )
        title = encoder_name if options.progress else None
        cache = cache_tokens(
            source,
            images,
            fixed,
            content=settings.content,
            dtype=settings.cache_dtype,
            memory_gib=settings.memory_gib,
            on_disk=settings.on_disk,
            folder=options.cache_dir,
            batch_size=batch_size,
            title=title and f"{title} (train)",
        )
        fits = [
            _fit(cache, labels, torch.searchsorted(used, pick), settings, seed, device, title)
            for pick, seed in zip(picks, seeds, strict=True)
        ]
        del cache  # before the next encoder's
        probes = [fit[0] for fit in fits]
        if watch is not None:
            watch(encoder_name, source, probes[0])
        predicted = _predict(probes, source, subject, fixed, settings.content, batch_size, title)
        for name in settings.pool:
            hits = predicted[name] == subject.test.labels.numpy()
            correct[f"{encoder_name} {name}"] = hits
            probe = probes[0][name]
            rows.append(
                {
                    "name": encoder_name,
                    "pooling": name,
                    "dim": probe.dim,
                    **score(hits),
                    "pooling_parameters": sum(p.numel() for p in _parameters(probe)),
                    "learning_rate": [fit[1][name] for fit in fits],
                    "held_out_train_accuracy_percent": [fit[2].get(name, {}) for fit in fits],
                }
            )
    pool = ",".join(settings.pool)
    seconds = time.perf_counter() - start
    plain = json.loads(json.dumps(asdict(settings)))  # tuples as the lists that a file gives back
    for row in rows:
        row["title"] = row_name(row)
    result = assemble("attentive", subject, rows, correct, plain, pool, seconds)
    if note := _at_an_end(rows, settings):
        result["notes"].append(note)
    return result | {"train_images": len(picks[0])}


Fit = tuple[dict[str, Probe], dict[str, float], dict[str, dict[str, float]]]


def _fit(
    cache: TokenCache,
    labels: Tensor,
    rows: Tensor,
    settings: AttentiveSettings,
    seed: int,
    device: str,
    title: str | None,
) -> Fit:
    """(probes trained on these rows, their rates, held-out accuracy by rate), by pooling."""
    inputs = {name: _input(cache, name) for name in settings.pool}
    poolings = {name: _maker(cache, name, settings) for name in settings.pool}
    rates: dict[str, tuple[float, ...]] = dict.fromkeys(settings.pool, settings.learning_rates)
    common: dict[str, Any] = {"seed": seed, "device": device}
    scores: dict[str, dict[str, float]] = {}
    if len(settings.learning_rates) > 1:
        split = hold_out(labels[rows].numpy(), settings.held_out, seed, "learning rate")
        fit_rows, check_rows = (rows[torch.from_numpy(part)] for part in split)
        swept = fit_probes(
            inputs,
            labels,
            poolings,
            rates,
            settings.training,
            rows=fit_rows,
            title=title and f"{title}: {len(settings.learning_rates)} learning rates",
            **common,
        )
        for name, probe in swept.items():
            found = predict_probe(probe, inputs[name], check_rows)
            shares = (found == labels[check_rows, None]).double().mean(0).tolist()
            best = max(range(len(shares)), key=shares.__getitem__)  # equal ones: the first
            rates[name] = (settings.learning_rates[best],)
            scores[name] = {
                f"{rate:g}": 100 * share
                for rate, share in zip(settings.learning_rates, shares, strict=True)
            }
    title = title and f"{title}: all training images"
    probes = fit_probes(
        inputs, labels, poolings, rates, settings.training, rows=rows, title=title, **common
    )
    return probes, {name: rate for name, (rate,) in rates.items()}, scores


def _predict(
    seeds: list[dict[str, Probe]],
    source: TokenSource,
    subject: Subject,
    fixed: dict[str, Callable[[TokenBatch], Tensor]],
    content: str,
    batch_size: int,
    title: str | None,
) -> dict[str, NDArray[np.int64]]:
    """Predicted classes by pooling, int64 [seeds, M]: one pass over the test images."""
    found: dict[str, list[Tensor]] = {name: [] for name in seeds[0]}
    images = subject.test.images
    title = title and f"{title} (test)"
    for _, batch in source.batches(images, batch_size=batch_size, title=title):
        for name, parts in found.items():
            x = fixed[name](batch) if name in fixed else batch.content(content)
            parts.append(torch.cat([predict_probe(probes[name], x) for probes in seeds], 1))
    return {name: torch.cat(parts).T.numpy() for name, parts in found.items()}


def _input(cache: TokenCache, name: str) -> Tensor:
    if name not in LEARNED:
        return cache.rows[name]
    assert cache.tokens is not None
    return cache.tokens


def _maker(
    cache: TokenCache, name: str, settings: AttentiveSettings
) -> Callable[[int], nn.Module] | None:
    if name == "abmilp":
        return lambda heads: AbMILP(
            cache.dim, cache.grid, cache.num_prefix_tokens, settings.abmilp, heads
        )
    if name == "map":
        return lambda heads: MapPooling(cache.dim, cache.num_prefix_tokens, heads)
    return None


def _parameters(probe: Probe) -> list[nn.Parameter]:
    return list(probe.pooling.parameters()) if probe.pooling else []


def _at_an_end(rows: list[Row], settings: AttentiveSettings) -> str:
    rates = settings.learning_rates
    ends = {min(rates), max(rates)}
    names = [
        f"{row['name']} {row['pooling']}"
        for row in rows
        if len(rates) > 2 and ends & set(row["learning_rate"])
    ]
    return (
        f"The best learning rate was the smallest or largest tried for {', '.join(names)}: "
        "learning_rates= may go further."
        if names
        else ""
    )
