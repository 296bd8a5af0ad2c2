"""Which spatial frequencies images and feature maps hold: log amplitude along the half diagonal.

The Fourier analysis of Park & Kim ("How do vision transformers work?", ICLR 2022), with which
A2MIM (Li et al., ICML 2023) compares the blocks of masked models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .features import Images, normalise

__all__ = ["BlockFrequencies", "block_frequencies", "log_amplitude"]


def log_amplitude(maps: Tensor) -> Tensor:
    """Mean ln |FFT| at the frequencies (k, k) / n, k = 0 .. n // 2, less that of k = 0.

    maps [B, C, H, W], of which the leading n = min(H, W) rows and columns count -> float64
    [n // 2 + 1]; the last value belongs to the highest frequency, pi. ln is the natural logarithm,
    its mean is over images and channels.
    """
    side = min(maps.shape[-2:])
    spectrum = torch.fft.fft2(maps[..., :side, :side].double()).abs()
    diagonal = spectrum.diagonal(dim1=-2, dim2=-1)[..., : side // 2 + 1]
    # A constant map has no amplitude at all but at 0; a floor keeps its logarithm finite.
    log = diagonal.clamp_min(1e-12).log().flatten(0, 1).mean(0)
    return log - log[0]


@dataclass(frozen=True)
class BlockFrequencies:
    """By block (a ViT) or stage (a CNN): log_amplitude float64 [blocks, frequencies], or a list of
    them where stages differ in size; variance float64 [blocks] of features over positions, mean
    over images and channels."""

    log_amplitude: list[Tensor]
    variance: Tensor


@torch.no_grad()
def block_frequencies(
    encoder: nn.Module,
    images: Images,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> BlockFrequencies:
    """Log amplitudes and variances of what each block or stage of a timm encoder puts out.

    No final norm. Raises ValueError for an encoder without forward_intermediates, or no images.
    """
    if not hasattr(encoder, "forward_intermediates"):
        raise ValueError(
            f"encoder: expected a timm model with forward_intermediates, got "
            f"{type(encoder).__name__}"
        )
    if len(images) == 0:
        raise ValueError("images: expected at least one image, got none")
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval().to(device)
    logs: list[Tensor] = []
    variances = torch.zeros(0)
    try:
        for start in range(0, len(images), batch_size):
            ids = torch.arange(start, min(start + batch_size, len(images)))
            maps = encoder.forward_intermediates(  # type: ignore[operator]
                normalise(images.images(ids).to(device), mean, std),
                norm=False,
                output_fmt="NCHW",
                intermediates_only=True,
            )
            share = len(ids) / len(images)
            found = [share * log_amplitude(map_).cpu() for map_ in maps]
            spread = share * torch.stack([m.double().flatten(2).var(-1).mean().cpu() for m in maps])
            logs = [a + b for a, b in zip(logs, found, strict=True)] if logs else found
            variances = spread if not len(variances) else variances + spread
    finally:
        for module, training in modes:
            module.training = training
    return BlockFrequencies(logs, variances)
