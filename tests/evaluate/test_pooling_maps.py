"""The maps of an attentive probe: the weights that its poolings have, image by image."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast.evaluate import (
    AbMILPSettings,
    AttentiveSettings,
    PoolingMaps,
    ProbeTraining,
    attentive,
)
from tests.evaluate.conftest import Drawn

SETTINGS = AttentiveSettings(
    training=ProbeTraining(epochs=3, warmup_epochs=1, batch_size=16), learning_rates=(1.0,), seeds=2
)


def watched(subject, settings):
    """(maps of the first five test images, the probes of each encoder, the result)."""
    maps = PoolingMaps(Drawn(subject.test.images.pixels[:5]))
    probes = {}

    def watch(name, source, found):
        probes[name] = found
        maps(name, source, found)

    return maps, probes, attentive(subject, settings, watch=watch)


@torch.no_grad()
def block_by_hand(encoder, images):
    """(tokens [B, 1 + L, D] of the last block, the attention of [cls] in it [B, heads, 1 + L])."""
    x = (images.float() / 255 - 0.5) / 0.25
    x = encoder._pos_embed(encoder.patch_embed(x))
    for block in encoder.blocks[:-1]:
        x = block(x)
    last = encoder.blocks[-1]
    heads, width = last.attn.num_heads, x.shape[-1]
    qkv = last.attn.qkv(last.norm1(x)).double()
    q, k = (part.unflatten(2, (heads, -1)) for part in (qkv[..., :width], qkv[..., width:-width]))
    scores = torch.einsum("bhd,bthd->bht", q[:, 0], k) / math.sqrt(width // heads)
    return last(x), scores.softmax(-1)


def test_maps_are_the_weights(subject):
    drawn = subject(0)
    maps, probes, result = watched(drawn, SETTINGS)
    assert list(maps.weights) == ["AbMILP", "[cls]", "random AbMILP", "random [cls]"]
    assert maps.grid == (4, 4)
    assert torch.equal(maps.images, drawn.test.images.pixels[:5])
    for encoder, prefix in (("pretrained", ""), ("random_init", "random ")):
        tokens, attention = block_by_hand(drawn.encoders[encoder].eval(), maps.images)
        score = probes[encoder]["abmilp"].pooling.score[0].heads[0]
        values = tokens[:, 1:].double() @ score.weight.detach().double()[0]  # the bias cancels
        # float32 of the network against float64 of the last step: a few hundred roundings
        torch.testing.assert_close(
            maps.weights[f"{prefix}AbMILP"].double(), values.softmax(1), rtol=1e-4, atol=1e-7
        )
        torch.testing.assert_close(
            maps.weights[f"{prefix}[cls]"].double(), attention.mean(1)[:, 1:], rtol=1e-4, atol=1e-7
        )
    assert result["rows"] == attentive(subject(0), SETTINGS)["rows"]


def test_tokens_that_are_no_patches_have_no_place_in_a_map(subject):
    settings = AttentiveSettings(
        pool=("abmilp",),
        training=SETTINGS.training,
        learning_rates=(1.0,),
        abmilp=AbMILPSettings(content="all", attention="both", depth=2, condition="position"),
    )
    maps, _, _ = watched(subject(0), settings)
    for name in ("AbMILP", "random AbMILP"):
        assert maps.weights[name].shape == (5, 16)
        assert (maps.weights[name].sum(1) < 1).all()  # the rest is for [cls]


def test_without_a_cls_or_a_learned_pooling(subject):
    drawn = subject(0)
    for name in drawn.encoders:
        test = "test_resnet" if timm.is_model("test_resnet") else "resnet10t"
        drawn.encoders[name] = timm.create_model(test, num_classes=0, output_stride=8)
    settings = AttentiveSettings(
        pool=("abmilp", "mean"), training=SETTINGS.training, learning_rates=(1.0,)
    )
    maps, _, _ = watched(drawn, settings)
    assert list(maps.weights) == ["AbMILP", "random AbMILP"]
    assert maps.grid == (2, 2)
    settings = AttentiveSettings(pool=("mean",), training=SETTINGS.training, learning_rates=(1.0,))
    assert watched(drawn, settings)[0].weights == {}


def test_only_networks_that_hide_their_attention_are_excused(subject, monkeypatch):
    def broken(batch):
        raise ValueError("maps of another shape")

    monkeypatch.setattr("clustermim_fast.evaluate.pooling_maps.cls_attention", broken)
    with pytest.raises(ValueError, match="another shape"):
        watched(subject(0), SETTINGS)
