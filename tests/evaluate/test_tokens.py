"""Cached tokens are the network's own, bounded, and leave no file behind."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast.evaluate import tokens as tokens_module
from clustermim_fast.evaluate.features import normalise
from clustermim_fast.evaluate.poolings import fixed_pooling
from clustermim_fast.evaluate.tokens import TokenSource, cache_tokens

FIXED = {name: fixed_pooling(name) for name in ("cls", "mean")}


def source_of(subject, **options):
    return TokenSource(subject.encoders["pretrained"], subject.mean, subject.std, **options)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_cached_equals_uncached(subject, tmp_path, on_disk, norm):
    """Against hooks on the network itself, in one batch; the cache works in batches of 7."""
    subject = subject(0)
    images = subject.train.images
    seen = {}
    encoder = subject.encoders["pretrained"].eval()
    hook = (encoder.norm if norm else encoder.blocks[-1]).register_forward_hook(
        lambda _module, _input, output: seen.update(out=output)
    )
    with torch.no_grad():
        encoder(normalise(images.pixels, subject.mean, subject.std))
    hook.remove()
    encoder.train()
    options = {"dtype": "float32", "on_disk": on_disk, "folder": tmp_path / "f", "batch_size": 7}
    cache = cache_tokens(source_of(subject, norm=norm), images, FIXED, content="all", **options)
    # A batch of another size may sum in another order: 32 channels of order 1 in float32.
    torch.testing.assert_close(cache.tokens, seen["out"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.rows["cls"], seen["out"][:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.rows["mean"], seen["out"][:, 1:].mean(1), rtol=1e-5, atol=1e-5)
    assert (cache.grid, cache.num_prefix_tokens, cache.dim) == ((4, 4), 1, 32)
    assert encoder.training
    assert not (tmp_path / "f").exists() or list((tmp_path / "f").iterdir()) == []


@pytest.mark.parametrize(("dtype", "relative"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_small_dtypes_round_once(subject, dtype, relative):
    subject = subject(0)
    exact = cache_tokens(source_of(subject), subject.train.images, {}, dtype="float32")
    cache = cache_tokens(source_of(subject), subject.train.images, {}, dtype=dtype)
    # 2^-24: what float16 cannot tell from zero.
    torch.testing.assert_close(cache.tokens.float(), exact.tokens, rtol=relative, atol=2**-24)
    assert exact.tokens.shape == (60, 16, 32)  # patches alone
    assert exact.num_prefix_tokens == 0


def test_an_earlier_block_and_a_convolutional_network(subject):
    subject = subject(0)
    images = subject.test.images
    encoder = subject.encoders["pretrained"].eval()
    with torch.no_grad():
        x = normalise(images.pixels, subject.mean, subject.std)
        embedded = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(x)))
        first = encoder.blocks[0](embedded)
    for layer in (0, -2):
        cache = cache_tokens(
            source_of(subject, layer=layer), images, {}, content="all", dtype="float32"
        )
        torch.testing.assert_close(cache.tokens, first, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="has no layer 2"):
        cache_tokens(source_of(subject, layer=2), images, {})
    network = timm.create_model("resnet10t", num_classes=0).eval()
    source = TokenSource(network, subject.mean, subject.std)
    cache = cache_tokens(source, images, {"mean": FIXED["mean"]}, dtype="float32")
    assert cache.num_prefix_tokens == 0
    assert cache.tokens.shape == (30, cache.grid[0] * cache.grid[1], 512)
    features = network(normalise(images.pixels, subject.mean, subject.std))
    torch.testing.assert_close(cache.rows["mean"], features, rtol=1e-4, atol=1e-5)


def test_too_large_is_refused_with_a_remedy(subject, tmp_path, monkeypatch):
    subject = subject(0)
    images = subject.train.images
    with pytest.raises(ValueError, match=r"60 images x 16 tokens x 32.*memory_gib.*on_disk=yes"):
        cache_tokens(source_of(subject), images, {}, memory_gib=1e-6, batch_size=7)
    assert images.asked == 1  # before the whole set went through the network
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(tokens_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="fewer training images"):
        cache_tokens(source_of(subject), images, {}, on_disk=True, folder=tmp_path)
    with pytest.raises(ValueError, match="cache_dtype: expected one of float16"):
        cache_tokens(source_of(subject), images, {}, dtype="int8")
    with torch.no_grad():
        subject.encoders["pretrained"].blocks[-1].mlp.fc2.bias.fill_(1e6)
    with pytest.raises(ValueError, match="do not fit float16; use cache_dtype=float32"):
        cache_tokens(source_of(subject), images, {})
