"""A2MIM's losses against sums over pixels and frequencies in Python floats."""

from __future__ import annotations

import cmath
import dataclasses
import math

import pytest
import torch

from clustermim_fast.losses import LossConfig, Targets, image_loss


def dft(plane):
    """Orthonormal two-dimensional Fourier transform of a list of rows, by its definition."""
    height, width = len(plane), len(plane[0])
    return [
        [
            sum(
                plane[y][x] * cmath.exp(-2j * math.pi * (u * y / height + v * x / width))
                for y in range(height)
                for x in range(width)
            )
            / math.sqrt(height * width)
            for v in range(width)
        ]
        for u in range(height)
    ]


def formula(predicted, images, where, config):
    """(spatial, Fourier) in Python floats."""
    batch, channels = images.shape[:2]
    total, count = 0.0, 0
    filled = torch.empty_like(images)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in images.shape)).tolist():
        b, c, y, x = index
        p, t, m = float(predicted[b, c, y, x]), float(images[b, c, y, x]), float(where[b, 0, y, x])
        d = abs(p - t)
        if config.spatial == "focal_l1":
            d *= (2 / (1 + math.exp(-config.spatial_alpha * d)) - 1) ** config.spatial_gamma
        total, count = total + d * m, count + m
        kept = m + (1 - m) * config.fourier_unmasked_weight
        rest = {"target": t, "prediction": p, "mean": float(images[b, c].mean()),
                "mixed": 0.5 * p + 0.5 * t}[config.fourier_unmasked]  # fmt: skip
        filled[b, c, y, x] = p * kept + rest * (1 - kept)
    spectra = [
        [[dft(x[b, c].tolist()) for c in range(channels)] for b in range(batch)]
        for x in (filled, images)
    ]
    squares = torch.tensor(spectra[0], dtype=torch.complex128) - torch.tensor(
        spectra[1], dtype=torch.complex128
    )
    if config.fourier_batch_mean:
        squares = squares.mean(0, keepdim=True)
    squares = squares.abs() ** 2
    if not config.fourier_focal:
        return total / count, float(squares.mean())
    weights = squares.sqrt() ** config.fourier_alpha
    if config.fourier_log:
        weights = (1 + weights).log()
    for b in range(len(weights)):
        for c in range(channels):
            if not config.fourier_batch_max:
                weights[b, c] /= weights[b, c].max()
    if config.fourier_batch_max:
        weights /= weights.max()
    return total / count, float((weights * squares).mean())


RELEASED = LossConfig(
    spatial="l1", fourier_weight=0.1, fourier_focal=True, fourier_unmasked_weight=0.0
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spatial": "focal_l1"},
        {"spatial": "focal_l1", "spatial_alpha": 0.5, "spatial_gamma": 2.0},
        {"fourier_unmasked_weight": 1e-3, "fourier_weight": 0.5},
        {"fourier_unmasked": "target", "fourier_unmasked_weight": 0.3},
        {"fourier_unmasked": "prediction", "fourier_unmasked_weight": 0.3},
        {"fourier_unmasked": "mean"},
        {"fourier_focal": False},
        {"fourier_alpha": 2.0},
        {"fourier_log": False},
        {"fourier_batch_max": True},
        {"fourier_batch_mean": True},
        {"fourier_weight": 0.0},
    ],
    ids=str,
)
def test_losses_equal_their_formula(changes):
    config = dataclasses.replace(RELEASED, **changes)
    images, predicted = torch.randn(2, 2, 4, 6), torch.randn(2, 2, 4, 6, requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]]).bool()
    where = mask.view(2, 1, 2, 3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    loss, metrics, parts = image_loss(
        predicted, torch.nn.Identity(), Targets(images, None, mask, 4, 2), config
    )
    spatial, fourier = formula(predicted.detach().double(), images.double(), where, config)
    assert metrics is None
    assert float(parts["spatial_loss"]) == pytest.approx(spatial, rel=2e-6)
    if config.fourier_weight == 0.0:
        assert set(parts) == {"spatial_loss"}
        assert float(loss.detach()) == pytest.approx(spatial, rel=2e-6)
        return
    assert float(parts["fourier_loss"]) == pytest.approx(fourier, rel=5e-6)
    wanted = spatial + config.fourier_weight * fourier
    assert float(loss.detach()) == pytest.approx(wanted, rel=5e-6)


@pytest.mark.parametrize("unmasked", ["prediction", "mixed", "target", "mean"])
def test_what_the_fourier_gradient_sees(unmasked):
    """Weights and what stands in for visible pixels are constants: the gradient at a visible pixel
    is fourier_unmasked_weight times what it would be without them, here nothing."""
    config = dataclasses.replace(RELEASED, fourier_unmasked=unmasked, fourier_weight=1e6)
    images, predicted = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4, requires_grad=True)
    mask = torch.tensor([[True, False, False, True]])
    targets = Targets(images, None, mask, 2, 2)
    image_loss(predicted, torch.nn.Identity(), targets, config).loss.backward()
    hidden = mask.view(1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    hidden = hidden.expand_as(images)
    assert predicted.grad[~hidden].abs().max() == 0
    assert predicted.grad[hidden].abs().min() > 0


@pytest.mark.parametrize("log", [True, False])
def test_focal_weights_are_constants_of_the_gradient(log):
    """The gradient of mean(W |F d|^2) with W held, F as two matrices, in float64."""
    images, predicted = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6, requires_grad=True)
    targets = Targets(images, None, torch.ones(2, 6, dtype=torch.bool), 6, 2)
    config = dataclasses.replace(RELEASED, fourier_log=log)
    loss, _, parts = image_loss(predicted, torch.nn.Identity(), targets, config)
    loss.backward()

    values = predicted.detach().double().requires_grad_()
    difference = values - images.double()
    rows, columns = (
        torch.exp(-2j * math.pi * torch.outer(torch.arange(n), torch.arange(n)) / n) / math.sqrt(n)
        for n in (4, 6)
    )
    rows, columns = rows.to(torch.complex128), columns.to(torch.complex128)
    squares = (rows @ difference.to(torch.complex128) @ columns).abs() ** 2
    weights = squares.detach().sqrt()
    weights = (1 + weights).log() if log else weights
    weights = weights / weights.flatten(2).max(2).values[..., None, None]
    (difference.abs().mean() + 0.1 * (weights * squares).mean()).backward()
    scale = float(values.grad.abs().max())
    assert (predicted.grad - values.grad).abs().max() < 1e-5 * scale
    assert float(parts["fourier_loss"]) > 0.1


def test_the_batchs_mean_spectrum_cannot_tell_images_apart():
    """The released form: predictions of other images of the batch cost nothing. Not the default."""
    images = torch.randn(4, 3, 8, 8)
    mask = torch.ones(4, 4, dtype=torch.bool)
    targets = Targets(images, None, mask, 4, 4)
    found = [
        float(
            image_loss(
                images.roll(1, 0), torch.nn.Identity(), targets,
                dataclasses.replace(RELEASED, fourier_batch_mean=batch_mean),
            ).parts["fourier_loss"]
        )
        for batch_mean in (False, True)
    ]  # fmt: skip
    assert found[0] > 0.5
    assert found[1] < 1e-12
