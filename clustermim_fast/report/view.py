"""What a report is made of. The caller loads the run; this package only looks at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clustermim_fast.tokenizers import Tokenizer

__all__ = ["RunView"]


@dataclass(frozen=True)
class RunView:
    """A finished or interrupted run.

    Attributes:
        run_dir: where report.html and figures/ go.
        method: a registered method's name.
        model: has ``logits(images, mask)`` [B, L, K] (tokens) or ``patches(images, mask)``
            [B, L, 3 p^2] in (row, column, channel) order (pixels), and ``grid`` (rows, columns).
        tokenizer: of a method with tokens; its `report` tells of the fit.
        mean, std: per channel, in [0, 1] pixel units.
        per_patch_norm: the pixels of each patch were normalised before they were predicted.
        samples: uint8 [N, 3, H, W] to show, with their masks bool [N, L].
        replaced: bool [N, L], patches that the model sees as their centroids, or None.
        usage: how often each token occurs among `usage_images` images, int64 [K].
        metrics: the lines of metrics.jsonl.
        config: the resolved settings, nested dicts.
        evaluations: what `evaluate` returned, by kind.
        broken: what is wrong with the results that are left out.
        epochs: what `eval_every` measured, a row an epoch.
        refresh_s: of a run that goes on, seconds after which the page loads itself again; 0: ended.
        about: short facts for the head of the page (name, value).
    """

    run_dir: Path
    method: str
    model: nn.Module
    tokenizer: Tokenizer | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    samples: Tensor
    mask: Tensor
    replaced: Tensor | None = None
    per_patch_norm: bool = False
    usage: Tensor | None = None
    usage_images: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    refresh_s: int = 0
    about: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
