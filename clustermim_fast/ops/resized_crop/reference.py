"""Batched crops in plain PyTorch, on any device: the integers of torch's resize of uint8 images."""

from __future__ import annotations

import torch


def _cubic(x: torch.Tensor) -> torch.Tensor:
    a, x = -0.5, x.abs()
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def axis_weights(inputs: torch.Tensor, outputs: int) -> tuple[torch.Tensor, ...]:
    """What each output of a resize takes from which inputs: antialiased bicubic.

    Args:
        inputs: int64 [B] on the CPU, sizes before; outputs: the size after.

    Returns:
        first int64 [B, outputs], weights int32 [B, outputs, taps] (0 past the last input), shift
        int32 [B]: an output is (sum of weights * inputs + 2^(shift - 1)) >> shift.
    """
    n = inputs.double()[:, None]
    scale = n / outputs
    support = 2.0 * scale.clamp_min(1.0)
    inverse = torch.where(scale >= 1.0, 1.0 / scale, 1.0)
    center = scale * (torch.arange(outputs, dtype=torch.float64) + 0.5)
    first = (center - support + 0.5).long().clamp_min(0)
    count = torch.minimum((center + support + 0.5).long(), inputs[:, None]) - first
    values, total = [], torch.zeros_like(center)
    for tap in range(int(count.max())):
        value = _cubic((tap + first.double() - center + 0.5) * inverse)
        values.append(torch.where(tap < count, value, 0.0))
        total = total + values[-1]
    share = torch.stack([value / total for value in values], dim=-1)
    largest = share.amax(dim=(1, 2))
    shift = torch.zeros(len(inputs), dtype=torch.int32)
    fits = torch.ones(len(inputs), dtype=torch.bool)
    for bits in range(1, 23):  # the most that keep the largest weight below 2^15
        fits = fits & ((0.5 + largest * 2.0**bits).long() < 2**15)
        shift += fits.int()
    scaled = share * (2.0 ** shift.double())[:, None, None]
    weights = torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).to(torch.int32)
    return first, weights, shift


def _resample(
    images_BCHW: torch.Tensor,
    dim: int,
    start: torch.Tensor,
    inputs: torch.Tensor,
    outputs: int,
    mirrored: torch.Tensor,
) -> torch.Tensor:
    """uint8 images with `outputs` places along `dim`, from inputs [start, start + inputs)."""
    first, weights, shift = axis_weights(inputs, outputs)
    taps = torch.arange(weights.shape[-1])
    places = torch.minimum(first[..., None] + taps, inputs[:, None, None] - 1)
    places = torch.where(mirrored[:, None, None], inputs[:, None, None] - 1 - places, places)
    view = [len(inputs), 1, 1, 1]
    view[dim] = outputs
    shape = list(images_BCHW.shape)
    shape[dim] = outputs
    device = images_BCHW.device
    places = (places + start[:, None, None]).to(device, non_blocking=True)
    weights, shift = weights.to(device, non_blocking=True), shift.to(device, non_blocking=True)
    bits = shift.view(-1, 1, 1, 1)
    total = torch.zeros(shape, dtype=torch.int32, device=device) + (1 << (bits - 1))
    for tap in range(weights.shape[-1]):
        where = places[..., tap].view(view).expand(shape)
        total += weights[..., tap].view(view) * images_BCHW.gather(dim, where)
    return (total >> bits).clamp(0, 255).to(torch.uint8)


def resized_crop_reference(
    images_BCHW: torch.Tensor, boxes: torch.Tensor, flip: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Crops uint8 [B, C, *size]; boxes int64 [B, 4] and flip bool [B] on the CPU.

    Rows first, then columns, uint8 in between: torch's order.
    """
    top, left, height, width = boxes.unbind(1)
    upright = torch.zeros_like(flip)
    rows = _resample(images_BCHW, 3, left, width, size[1], flip)
    return _resample(rows, 2, top, height, size[0], upright)
