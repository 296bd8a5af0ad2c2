"""Poolings against the formulas written out in float64, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")

import torch

from clustermim_fast.evaluate import AbMILP, AbMILPSettings
from clustermim_fast.evaluate.poolings import MapPooling, fixed_pooling
from clustermim_fast.evaluate.tokens import TokenBatch
from clustermim_fast.models.positions import sincos_positions

D, GRID, PREFIX = 8, (2, 3), 1
# float32 sums of at most 8 products of order 1, through at most five layers.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def abmilp_formula(tokens, weights, settings):
    """methods of "Beyond [cls]" for one image [T, D] in float64."""
    x = tokens[PREFIX:] if settings.content == "patch" else tokens
    u = values = x
    if settings.attention != "none":
        q, k, v = np.split(x @ weights["attention.0.qkv.weight"].T, 3, axis=1)
        mixed = softmax(q @ k.T / np.sqrt(D)) @ v
        u = mixed @ weights["attention.0.proj.weight"].T + weights["attention.0.proj.bias"]
        values = u if settings.attention == "both" else x
    if settings.condition == "position":
        prefix = 0 if settings.content == "patch" else PREFIX
        u = u + sincos_positions(GRID, D, prefix).double().numpy()
    hidden = u
    for layer in range(settings.depth):
        name = f"score.{2 * layer}.heads.0"
        hidden = hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        if layer < settings.depth - 1:
            hidden = np.maximum(hidden, 0) if settings.activation == "relu" else np.tanh(hidden)
    return softmax(hidden[:, 0]) @ values


@pytest.mark.parametrize("content", ["patch", "all"])
@pytest.mark.parametrize("attention", ["none", "map", "both"])
@pytest.mark.parametrize(
    ("depth", "activation", "condition"),
    [(1, "relu", "none"), (2, "tanh", "none"), (3, "relu", "position")],
)
def test_abmilp_is_its_formula(content, attention, depth, activation, condition):
    settings = AbMILPSettings(content, attention, depth, activation, condition)
    torch.manual_seed(0)
    pooling = AbMILP(D, GRID, PREFIX, settings)
    tokens = torch.randn(3, PREFIX + 6, D)
    weights = {name: value.double().numpy() for name, value in pooling.state_dict().items()}
    truth = np.stack(
        [abmilp_formula(image, weights, settings) for image in tokens.double().numpy()]
    )
    found = pooling(tokens)
    assert found.shape == (3, 1, D)
    torch.testing.assert_close(found[:, 0].double(), torch.from_numpy(truth), **CLOSE)


def test_sizes_are_the_papers():
    """D + 1 by default; 2.95 M with the released command line's defaults, at ViT-B's width."""

    def size(settings):
        return sum(p.numel() for p in AbMILP(768, (14, 14), 1, settings).parameters())

    assert size(AbMILPSettings()) == 769
    assert round(size(AbMILPSettings("all", "both", 2, "tanh")) / 1e6, 2) == 2.95
    assert size(AbMILPSettings(condition="position")) == 769  # positions are not trained


@pytest.mark.parametrize(
    "make",
    [
        lambda heads: AbMILP(D, GRID, PREFIX, None, heads),
        lambda heads: AbMILP(D, GRID, PREFIX, AbMILPSettings("all", "both", 2), heads),
        lambda heads: MapPooling(D, PREFIX, heads),
    ],
)
def test_heads_are_separate(make):
    """They begin alike, and each is a function of its own parameters alone."""
    torch.manual_seed(0)
    pooling = make(3)
    tokens = torch.randn(4, 7, D)
    out = pooling(tokens)
    torch.testing.assert_close(out[:, 0], out[:, 2], **CLOSE)
    second = next(p for name, p in pooling.named_parameters() if ".1." in name and p.ndim > 1)
    with torch.no_grad():
        second.add_(torch.randn_like(second))
    changed = pooling(tokens)
    torch.testing.assert_close(changed[:, [0, 2]], out[:, [0, 2]], **CLOSE)
    assert not torch.allclose(changed[:, 1], out[:, 1], rtol=1e-3)


def test_fixed_poolings():
    patches = torch.arange(2 * 16 * 2.0).view(2, 16, 2)
    batch = TokenBatch(torch.full((2, 1, 2), -1.0), patches, (4, 4), True)
    assert torch.equal(fixed_pooling("cls")(batch), torch.full((2, 2), -1.0))
    assert torch.equal(fixed_pooling("mean")(batch), patches.mean(1))
    centre = patches.view(2, 4, 4, 2)[:, 1:3, 1:3].reshape(2, 4, 2).mean(1)
    assert torch.equal(fixed_pooling("centre2")(batch), centre)
    assert torch.equal(fixed_pooling("centre4")(batch), patches.mean(1))
    with pytest.raises(ValueError, match="centre5 is larger than the 4 x 4 patches"):
        fixed_pooling("centre5")(batch)
    with pytest.raises(ValueError, match=r"no \[cls\]"):
        fixed_pooling("cls")(TokenBatch(patches[:, :0], patches, (4, 4), False))
    for name in ("max", "centre", "centre0"):
        with pytest.raises(ValueError, match="expected abmilp, map, cls"):
            fixed_pooling(name)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"content": "patches"}, "content: expected one of patch, all, got 'patches'"),
        ({"attention": "two"}, "attention: expected one of none, map, both"),
        ({"activation": "sine"}, "activation"),
        ({"condition": "pe"}, "condition"),
        ({"depth": 0}, "depth: expected at least 1, got 0"),
    ],
)
def test_switches_that_do_not_exist(options, named):
    with pytest.raises(ValueError, match=named):
        AbMILPSettings(**options)
