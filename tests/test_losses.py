"""The ClusterMIM step against an independent float64 formula of the paper's, and MAE's."""

from __future__ import annotations

import math

import pytest
import torch

from clustermim_fast.losses import LossConfig, Targets, patchify, pixel_loss, token_loss
from clustermim_fast.masking import Masks, visible_indices
from clustermim_fast.models import ModelConfig, create_model
from clustermim_fast.train.step import forward_step


def decoded_patches(model, image, hidden):
    """The decoder's [L, d] of one image in float64, by hand: nothing of the package is used but the
    weights. The encoder sees the visible patches, picked with Python lists.
    """
    encoder = model.encoder
    seen = [i for i, is_masked in enumerate(hidden.tolist()) if not is_masked]
    weight = encoder.patch_embed.proj.weight
    p = weight.shape[-1]
    columns = image.shape[2] // p
    rows = []
    for i in seen:
        y, x = (i // columns) * p, (i % columns) * p
        pixels = image[:, y : y + p, x : x + p].reshape(-1)
        value = weight.reshape(len(weight), -1) @ pixels + encoder.patch_embed.proj.bias
        rows.append(value + encoder.pos_embed[0, i + 1])
    tokens = torch.stack([encoder.cls_token[0, 0], *rows])[None]
    tokens = encoder.norm(encoder.blocks(tokens))
    embedded = model.decoder_embed(tokens)[0]
    full = [
        embedded[1 + seen.index(i)] if i in seen else model.mask_token[0, 0]
        for i in range(len(hidden))
    ]
    full = torch.stack([embedded[0], *full]) + model.decoder_positions[0]
    return model.decoder_norm(model.decoder_blocks(full[None]))[0, 1:]


def paper_loss(model, images, mask, targets, smoothing=0.0):
    """(1 / |M|) sum over masked patches of -log softmax(W h + b)[target], in float64."""
    total, count = 0.0, 0
    for image, hidden, target in zip(images, mask, targets, strict=True):
        decoded = decoded_patches(model, image, hidden)
        for i, is_masked in enumerate(hidden.tolist()):
            if is_masked and target[i] >= 0:
                scores = model.head.weight @ decoded[i] + model.head.bias
                log_p = scores - torch.log(torch.exp(scores).sum())
                total = total - (1 - smoothing) * log_p[target[i]] - smoothing * log_p.mean()
                count += 1
    return total / count


def mae_loss(model, images, mask, normalise):
    """Mean over masked patches and their values of (W h + b - pixel)^2, in float64; with
    `normalise` of pixels less their patch's mean, over its unbiased deviation.
    """
    total, count = 0.0, 0
    for image, hidden in zip(images, mask, strict=True):
        decoded = decoded_patches(model, image, hidden)
        for i, is_masked in enumerate(hidden.tolist()):
            if is_masked:
                y, x = 2 * (i // 3), 2 * (i % 3)
                patch = image[:, y : y + 2, x : x + 2].permute(1, 2, 0).reshape(-1)
                if normalise:
                    centred = patch - patch.sum() / 12
                    patch = centred / ((centred**2).sum() / 11 + 1e-6).sqrt()
                error = model.head.weight @ decoded[i] + model.head.bias - patch
                total = total + (error**2).sum()
                count += 12
    return total / count


@pytest.mark.parametrize("normalise", [False, True])
def test_mae_step_equals_its_formula(normalise):
    config = ModelConfig(
        patch_size=2, embed_dim=16, depth=2, num_heads=2, decoder_dim=8, decoder_heads=2,
        decoder_depth=1,
    )  # fmt: skip
    model = create_model("mae", config, (4, 6), 0)
    images = torch.randint(0, 256, (3, 3, 4, 6), dtype=torch.uint8)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1]]).bool()
    mean, std = torch.tensor([0.4, 0.5, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    scale = (mean.view(3, 1, 1), std.view(3, 1, 1))
    masks = Masks(mask, visible_indices(mask), None)
    options = LossConfig(norm_pix_loss=normalise)
    result = forward_step(model, None, images, masks, *scale, options)
    result.loss.backward()
    gradients = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    model.double()
    model.decoder_positions = model.decoder_positions.double()
    pixels = (images.double() / 255 - scale[0].double()) / scale[1].double()
    truth = mae_loss(model, pixels, mask, normalise)
    truth.backward()
    # float32 through three blocks and values up to 5: the ClusterMIM step's bound, relative
    assert float(result.loss.detach()) == pytest.approx(float(truth.detach()), rel=5e-6)
    assert result.tokens is result.metrics is None
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert (gradients[name] - value).abs().max() < 5e-6 * largest, name


@pytest.fixture
def step():
    config = ModelConfig(
        patch_size=2, embed_dim=16, depth=2, num_heads=2, decoder_dim=8, decoder_heads=2,
        decoder_depth=1,
    )  # fmt: skip
    model = create_model("clustermim", config, (4, 6), 5)
    images = torch.randn(3, 3, 4, 6)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1]]).bool()
    tokens = torch.randint(0, 5, (3, 6))
    return model, images, mask, tokens


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_nan_patch", [False, True])
def test_step_equals_the_papers_formula(step, smoothing, with_nan_patch):
    model, images, mask, tokens = step
    if with_nan_patch:
        tokens[0, 3] = -1  # what the tokenizer gives for a patch with NaN
    targets = Targets(images, tokens, mask, 4, 2)
    loss, metrics, _ = token_loss(
        model(images, mask), model.head, targets, LossConfig(label_smoothing=smoothing)
    )
    with torch.no_grad():
        best = model.head(model(images, mask))[:, 1:].argmax(-1)
    counted = mask & (tokens >= 0)
    assert int(metrics.num_counted) == int(counted.sum())
    correct = (best == tokens)[counted]
    assert float(metrics.accuracy) == pytest.approx(float(correct.double().mean()))
    assert torch.equal(metrics.histogram, best[counted].bincount(minlength=5))
    (3.0 * loss).backward()
    gradients = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    model.double()
    model.decoder_positions = model.decoder_positions.double()
    truth = paper_loss(model, images.double(), mask, tokens, smoothing)
    (3.0 * truth).backward()
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    assert abs(float(loss.detach()) - float(truth.detach())) < 2e-6
    assert gradients.keys() == wanted.keys()
    scale = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert (gradients[name] - value).abs().max() < 2e-6 * scale, name


def test_first_loss_is_near_ln_k():
    """Before training, predictions know nothing: the loss of many images lies close to ln K."""
    config = ModelConfig(patch_size=4, embed_dim=64, depth=2, num_heads=2)
    model = create_model("clustermim", config, (16, 16), 50)
    mask = torch.zeros(64, 16, dtype=torch.bool)
    mask[:, 4:] = True
    targets = Targets(torch.randn(64, 3, 16, 16), torch.randint(0, 50, (64, 16)), mask, 12, 4)
    loss, *_ = token_loss(model(targets.images, mask), model.head, targets, LossConfig())
    assert abs(float(loss.detach()) - math.log(50)) < 1.0


@pytest.mark.parametrize("normalise", [False, True])
def test_pixel_loss_equals_its_formula(normalise):
    images, mask = torch.randn(2, 3, 4, 4), torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1]]).bool()
    hidden, head = torch.randn(2, 5, 8), torch.nn.Linear(8, 12)
    targets = Targets(images, None, mask, 3, 2)
    loss, *_ = pixel_loss(hidden, head, targets, LossConfig(norm_pix_loss=normalise))
    total = 0.0
    for b in range(2):
        for i in range(4):
            y, x = 2 * (i // 2), 2 * (i % 2)
            patch = images[b, :, y : y + 2, x : x + 2].permute(1, 2, 0).reshape(-1).double()
            if normalise:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            predicted = head.double()(hidden[b, i + 1].double())
            if mask[b, i]:
                total += float(((predicted - patch) ** 2).mean().detach())
    assert abs(float(loss.detach()) - total / 6) < 1e-5


def test_patchify_order():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    assert patches[1, 4].tolist() == images[1, :, 2:4, 2:4].permute(1, 2, 0).flatten().tolist()


def test_refusals(step):
    model, images, mask, _ = step
    with pytest.raises(ValueError, match="needs a tokenizer"):
        token_loss(model(images, mask), model.head, Targets(images, None, mask, 4, 2), LossConfig())
    with pytest.raises(ValueError, match="label_smoothing"):
        LossConfig(label_smoothing=1.0)
