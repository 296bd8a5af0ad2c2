"""A2MIM's loss on whole images: absolute error where they are hidden, and error of the spectrum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clustermim_fast.losses.config import LossConfig
from clustermim_fast.losses.patches import Outcome, Targets
from clustermim_fast.patch_grid import expand_mask


def image_loss(hidden: Tensor, head: nn.Module, targets: Targets, config: LossConfig) -> Outcome:
    """spatial + fourier_weight * fourier, of the images float [B, 3, H, W] that `head` makes of a
    feature map.
    """
    predicted = head(hidden).float()
    height, width = targets.images.shape[2:]
    grid = (height // targets.patch_size, width // targets.patch_size)
    where = expand_mask(targets.mask, grid, (height, width)).to(predicted.dtype)
    spatial = targets.share(spatial_loss(predicted, targets.images, where, config))
    parts = {"spatial_loss": spatial.detach()}
    weight = 0.1 if config.fourier_weight is None else config.fourier_weight
    if weight == 0.0:
        return Outcome(spatial, None, parts)
    fourier = targets.share(fourier_loss(predicted, targets.images, where, config), 1)
    return Outcome(spatial + weight * fourier, None, {**parts, "fourier_loss": fourier.detach()})


def image_counts(head: nn.Module, targets: Targets, config: LossConfig) -> tuple[Tensor, ...]:
    """Over how many patches `spatial_loss`, and how many images `fourier_loss`, is a mean."""
    images = torch.full((), len(targets.mask), device=targets.mask.device)
    return targets.mask.sum(), images


def spatial_loss(predicted: Tensor, images: Tensor, where: Tensor, config: LossConfig) -> Tensor:
    """Mean of |d| over hidden pixels and channels, or of |d| (2 sigmoid(alpha |d|) - 1)^gamma."""
    error = (predicted - images).abs()
    if config.spatial == "focal_l1":
        scale = 2.0 * torch.sigmoid(config.spatial_alpha * error) - 1.0
        error = error * scale**config.spatial_gamma
    return (error * where).sum() / (where.sum() * images.shape[1])


def fourier_loss(predicted: Tensor, images: Tensor, where: Tensor, config: LossConfig) -> Tensor:
    """Mean squared distance of the spectra (fft2, orthonormal), each frequency weighted by its own
    distance ("focal frequency loss").

    Visible pixels of the prediction count with fourier_unmasked_weight; for the rest of each stands
    what fourier_unmasked says. The released code averages the spectra of a batch before it compares
    them (fourier_batch_mean): such a term sees only the mean image of the batch and vanishes with
    its size, so it is not the default here.
    """
    counted = where + (1.0 - where) * (config.fourier_unmasked_weight or 0.0)
    constant = predicted.detach()
    fill = {
        "target": images,
        "prediction": constant,
        "mean": images.mean((2, 3), keepdim=True),
        "mixed": 0.5 * (constant + images),
    }[config.fourier_unmasked]
    difference = predicted * counted + fill * (1.0 - counted) - images
    if config.fourier_batch_mean:
        difference = difference.mean(0, keepdim=True)
    # The transform is linear: the difference of spectra is the spectrum of the difference.
    spectrum = torch.fft.fft2(difference, norm="ortho")
    distance = spectrum.real**2 + spectrum.imag**2
    if config.fourier_focal is False:
        return distance.mean()
    with torch.no_grad():
        weight = distance.sqrt() ** config.fourier_alpha
        if config.fourier_log:
            weight = weight.log1p()
        largest = weight.amax() if config.fourier_batch_max else weight.amax((2, 3), keepdim=True)
        weight = weight / largest.clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight * distance).mean()
