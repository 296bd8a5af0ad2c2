"""How good a tokenizer is without labels: usage, margin, and ids that small changes leave alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clustermim_fast.tokenizers.base import Tokenizer
from clustermim_fast.tokenizers.counting import tokens_of_each

NOISE_SIGMA = 0.05
BLUR_SIGMA = 1.0  # pixels
BRIGHTER, FLATTER = 1.15, 0.85
MARGIN_IMAGES = 16  # of a batch: all ids of these images are looked at, which is enough for a mean


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of 0.05 of the range, another one in every pixel and channel."""
    drawn = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + NOISE_SIGMA * drawn).clamp(0, 1)


def blur(images: Tensor, _: torch.Generator) -> Tensor:
    """Gaussian blur of sigma one pixel."""
    from torchvision.transforms.functional import gaussian_blur

    blurred: Tensor = gaussian_blur(images, [5, 5], [BLUR_SIGMA, BLUR_SIGMA])
    return blurred


def jitter(images: Tensor, _: torch.Generator) -> Tensor:
    """15 % brighter, then 15 % less contrast."""
    from torchvision.transforms.functional import adjust_brightness, adjust_contrast

    changed: Tensor = adjust_contrast(adjust_brightness(images, BRIGHTER), FLATTER)
    return changed


def shift(images: Tensor, _: torch.Generator) -> Tensor:
    """One pixel down and to the right; the first row and column are there twice."""
    rows, columns = (torch.arange(-1, side - 1).clamp_(min=0) for side in images.shape[-2:])
    return images[..., rows, :][..., columns]


CHANGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "jitter": jitter,
    "shift": shift,
}


@dataclass(frozen=True)
class Stability:
    """What images alone say of a tokenizer.

    Stable is not yet informative: tokens of features that tell a patch's place hardly ever change.
    Compare few tokens with few, and look at TCAS where there are labels.

    Attributes:
        unchanged: by change (``CHANGES``), the share of patches that keep their id.
        kappa: the same beyond chance (Cohen's kappa): a few tokens, or one that most patches have,
            agree by chance alone. 1: none changes; 0: as if drawn anew; for a single token 0.
        score: mean of ``kappa``.
        margin: mean of (d2 - d1) / d2 of the distances to the nearest and next centroid (1 - cosine
            for "cosine"; for "dot" the gap to the next product, over the largest's size).
        perplexity, dead: exp of the entropy of the tokens' frequencies, tokens that never occur.
        patches: how many were looked at.
    """

    unchanged: dict[str, float]
    kappa: dict[str, float]
    score: float
    margin: float
    perplexity: float
    dead: int
    patches: int


class _Tally:
    """Running sums of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        k = tokenizer.num_clusters
        self.tokenizer = tokenizer
        self.clean = torch.zeros(k, dtype=torch.int64)
        self.changed = {name: torch.zeros(k, dtype=torch.int64) for name in CHANGES}
        self.same = dict.fromkeys(CHANGES, 0)
        self.margin, self.margins = 0.0, 0

    def add(self, before: Tensor, after: dict[str, Tensor], images: Tensor) -> None:
        k = len(self.clean)
        self.clean += torch.bincount(before.flatten(), minlength=k)
        for name, ids in after.items():
            self.changed[name] += torch.bincount(ids.flatten(), minlength=k)
            self.same[name] += int((ids == before).sum())
        values = margins(self.tokenizer, images[:MARGIN_IMAGES])
        self.margin, self.margins = self.margin + float(values.sum()), self.margins + len(values)

    def result(self) -> Stability:
        patches = int(self.clean.sum())
        share = self.clean.double() / patches
        unchanged = {name: same / patches for name, same in self.same.items()}
        kappa = {}
        for name, agreed in unchanged.items():
            chance = float((share * self.changed[name].double() / patches).sum())
            kappa[name] = (agreed - chance) / (1 - chance) if chance < 1 else 0.0
        return Stability(
            unchanged,
            kappa,
            sum(kappa.values()) / len(kappa),
            self.margin / self.margins,
            float(torch.special.entr(share).sum().exp()),
            int((self.clean == 0).sum()),
            patches,
        )


def token_stability(
    tokenizers: Sequence[Tokenizer], batches: Iterable[Tensor], *, seed: int = 0
) -> list[Stability]:
    """Look at ``batches`` of images (uint8 [B, C, H, W], or floating 0..1) once for all.

    Every tokenizer sees the same changed images, and all images are given to it as floats.
    """
    if not tokenizers:
        raise ValueError("tokenizers: expected one or more, got none")
    tallies = [_Tally(tokenizer) for tokenizer in tokenizers]
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
        if not bool(torch.isfinite(images).all()):
            raise ValueError("batches: images must be finite, got NaN or infinity")
        before = tokens_of_each(tokenizers, images)
        changed = {
            name: tokens_of_each(tokenizers, change(images, generator))
            for name, change in CHANGES.items()
        }
        for number, tally in enumerate(tallies):
            after = {name: ids[number] for name, ids in changed.items()}
            tally.add(before[number], after, images)
    if not int(tallies[0].clean.sum()):
        raise ValueError("batches: expected images, got none")
    return [tally.result() for tally in tallies]


def margins(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """How clear each patch's choice was, float32 [B * L]; see :class:`Stability`."""
    vectors, centroids = tokenizer.vectors(images), tokenizer.centroids
    if len(centroids) == 1:
        return torch.zeros(len(vectors))
    if tokenizer.metric == "dot":
        best, second = (vectors @ centroids.T).topk(2, dim=1).values.unbind(1)
        return (best - second) / best.abs().clamp(min=1e-12)
    if tokenizer.metric == "cosine":
        normal = torch.nn.functional.normalize
        distances = 1 - normal(vectors, dim=1) @ normal(centroids, dim=1).T
    else:
        distances = torch.cdist(vectors, centroids)
    best, second = distances.clamp(min=0).topk(2, dim=1, largest=False).values.unbind(1)
    return (second - best) / second.clamp(min=1e-12)
