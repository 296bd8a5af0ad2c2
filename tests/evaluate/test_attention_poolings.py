"""Poolings that follow attention, against the attention written out in float64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast.evaluate import AttentiveSettings, ProbeTraining, TokenSource, attentive
from clustermim_fast.evaluate.features import normalise
from clustermim_fast.evaluate.poolings import fixed_pooling

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 through two blocks


def attention_and_tokens(encoder, images, number):
    """(softmax attention [B, heads, T, T] of a block, its tokens [B, T, D]), float64, by hand."""
    encoder = encoder.double().eval()
    with torch.no_grad():
        x = encoder._pos_embed(encoder.patch_embed(images.double()))
        for block in encoder.blocks[:number]:
            x = block(x)
        block = encoder.blocks[number]
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT / 4.0).softmax(-1)  # heads of 16 channels
        tokens = block(x)
    encoder.float()
    return attention.numpy(), tokens.numpy()


def pooled_by_hand(attention, tokens, name):
    """One image at a time: attention [heads, T, T], tokens [T, D]; [cls] is the first of T."""
    rows = []
    for a, x in zip(attention, tokens, strict=True):
        if name == "attn_mean":
            weights = a[:, 0, 1:].mean(0)
        elif name == "attn_lowest_entropy":
            shares = [head[0, 1:] / head[0, 1:].sum() for head in a]
            weights = min(shares, key=lambda p: -(p * np.log(p)).sum())
        else:
            centre = [1 + 4 * row + column for row in (1, 2) for column in (1, 2)]
            weights = np.mean([head[i, 1:] for head in a for i in centre], axis=0)
        rows.append((weights / weights.sum()) @ x[1:])
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("name", ["attn_mean", "attn_lowest_entropy", "attn_centre2"])
def test_they_are_their_formulas(subject, layer, name):
    subject = subject(0)
    encoder = subject.encoders["pretrained"]
    with torch.no_grad():  # a fresh network attends almost evenly, and any weights would pass
        for block in encoder.blocks:
            block.attn.qkv.weight.mul_(6)
    pixels = subject.test.images.pixels[:5]
    source = TokenSource(encoder.eval(), subject.mean, subject.std, layer, attention=True)
    with torch.no_grad():
        found = fixed_pooling(name)(source.batch(pixels))
    by_hand = attention_and_tokens(encoder, normalise(pixels, subject.mean, subject.std), layer % 2)
    truth = pooled_by_hand(*by_hand, name)
    torch.testing.assert_close(found.double(), truth, **CLOSE)
    even = torch.from_numpy(by_hand[1][:, 1:].mean(1))
    assert float((truth - even).abs().max()) > 100 * CLOSE["atol"]


def test_a_teacher_weighs_the_patches_of_another(subject):
    subject = subject(0)
    encoder, teacher = (subject.encoders[name].eval() for name in ("pretrained", "random_init"))
    with torch.no_grad():
        teacher.blocks[-1].attn.qkv.weight.mul_(6)
    other = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # it sees the images in its own way
    source = TokenSource(
        encoder, subject.mean, subject.std, teacher=TokenSource(teacher, **other, attention=True)
    )
    pixels = subject.test.images.pixels[:5]
    with torch.no_grad():
        found = fixed_pooling("teacher")(source.batch(pixels))
    attention, _ = attention_and_tokens(teacher, normalise(pixels, *other.values()), 1)
    _, tokens = attention_and_tokens(encoder, normalise(pixels, subject.mean, subject.std), 1)
    truth = pooled_by_hand(attention, tokens, "attn_mean")
    torch.testing.assert_close(found.double(), truth, **CLOSE)


def settings(*pool):
    training = ProbeTraining(epochs=1, warmup_epochs=0, batch_size=16)
    return AttentiveSettings(pool=pool, training=training, learning_rates=(0.1,), shots="4")


def test_in_an_evaluation(subject):
    shapes = subject(0)
    teacher = TokenSource(shapes.encoders["random_init"], shapes.mean, shapes.std, attention=True)
    names = ("abmilp", "attn_mean", "attn_lowest_entropy", "attn_centre2", "teacher")
    result = attentive(shapes, settings(*names), teacher=teacher)
    assert [row["pooling"] for row in result["rows"][:5]] == list(names)


def test_refusals(subject):
    shapes = subject(0)
    with pytest.raises(ValueError, match="teacher: expected one with pool=teacher"):
        attentive(shapes, settings("teacher"))
    small = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2
    )
    teacher = TokenSource(small, shapes.mean, shapes.std, attention=True)
    with pytest.raises(ValueError, match=r"4 x 4 patches like the encoder, got 2 x 2"):
        attentive(shapes, settings("teacher"), teacher=teacher)
    large = timm.create_model("vit_tiny_patch16_224", embed_dim=32, depth=1, num_heads=2)
    teacher = TokenSource(large, shapes.mean, shapes.std, attention=True)
    with pytest.raises(ValueError, match=r"for images of 16 x 16 pixels: .*224"):
        attentive(shapes, settings("teacher"), teacher=teacher)
    shapes.encoders["pretrained"] = timm.create_model("resnet10t", num_classes=0)
    with pytest.raises(ValueError, match="expected a timm ViT whose blocks hold an attention"):
        attentive(shapes, settings("attn_mean"))
