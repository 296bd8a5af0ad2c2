"""Where the poolings of an attentive probe look: AbMILP's weights, and the attention of [cls]."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from .attention import NoAttentionError
from .features import Images
from .poolings import AbMILP, cls_attention
from .probe import Probe
from .tokens import TokenSource

__all__ = ["PoolingMaps"]


class PoolingMaps:
    """A ``watch`` of `attentive`: maps of a few images for each encoder.

    Attributes:
        images: uint8 [N, 3, H, W].
        weights: title -> what each patch gets, float [N, L] on the CPU, row-major; in the order
            of the encoders, AbMILP's (which sum to 1 over the tokens that it reads) before those of
            [cls] (mean over heads, in the block that the tokens come from), which a convolutional
            network does not have. Those of random initialisation begin with "random ".
        grid: rows and columns of the patches.
    """

    def __init__(self, images: Images) -> None:
        self._images = images
        self.images = images.images(torch.arange(len(images)))
        self.weights: dict[str, Tensor] = {}
        self.grid = (0, 0)

    def __call__(self, encoder: str, source: TokenSource, probes: Mapping[str, Probe]) -> None:
        """Add the maps of one encoder; none without a probe behind AbMILP."""
        pooling = probes["abmilp"].pooling if "abmilp" in probes else None
        if not isinstance(pooling, AbMILP):
            return
        prefix = {"pretrained": "", "random_init": "random "}.get(encoder, f"{encoder} ")
        for _, batch in replace(source, teacher=None, attention=False).batches(self._images):
            self.grid = batch.grid
            weights, _ = pooling.attend(batch.content(pooling.settings.content).float())
            patches = weights[:, 0, -batch.patches.shape[1] :]
            self._add(f"{prefix}AbMILP", patches)
        if batch.has_cls:
            with suppress(NoAttentionError):
                for _, batch in replace(source, teacher=None, attention=True).batches(self._images):
                    self._add(f"{prefix}[cls]", cls_attention(batch).mean(1))

    def _add(self, title: str, weights: Tensor) -> None:
        before = [self.weights[title]] if title in self.weights else []
        self.weights[title] = torch.cat([*before, weights.detach().float().cpu()])
