"""The drop-in examples: losses and all gradients against the codebases' formulas in float64."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "examples"
STYLES = ("mae_style", "beit_style", "clustermim_style")

pytest.importorskip("sklearn", reason="the extra [train] is not installed")


@pytest.fixture
def example(monkeypatch):
    """``example("mae_style")``: the module; its neighbours import each other by name."""
    if not FOLDER.is_dir():
        pytest.skip("examples/ is not beside the tests")
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in (*STYLES, "example_parts", "plain_loop"):
        sys.modules.pop(name, None)


def patches(imgs, p=4):
    """float64 [B, L, p * p * 3], (row, column, channel), patch by patch."""
    b, _, h, w = imgs.shape
    at = [(y, x) for y in range(0, h, p) for x in range(0, w, p)]
    rows = [imgs.double()[:, :, y : y + p, x : x + p].permute(0, 2, 3, 1) for y, x in at]
    return torch.stack(rows, dim=1).reshape(b, len(at), -1)


def per_patch_norm(rows):
    mean = rows.mean(-1, keepdim=True)
    variance = (rows - mean).square().sum(-1, keepdim=True) / (rows.shape[-1] - 1)
    return (rows - mean) / (variance + 1e-6).sqrt()


def nearest(rows, centroids):
    """Ids by float64 differences; the images are drawn so that no two distances are near."""
    squares = (rows[..., None, :] - centroids.double()).square().sum(-1)
    first, second = squares.topk(2, largest=False).values.unbind(-1)
    assert (second - first).min() > 1e-4
    return squares.argmin(-1)


def mean_cross_entropy(head, x, tokens, mask, smoothing=0.0):
    """sum over masked of (lse(z) - (1 - a) z_t - a mean z), over their number; x has a [cls]."""
    z = torch.einsum("btd,kd->btk", x[:, 1:], head.weight) + head.bias
    picked = z.gather(-1, tokens[..., None])[..., 0]
    rows = z.exp().sum(-1).log() - (1 - smoothing) * picked - smoothing * z.mean(-1)
    return (rows * mask).sum() / mask.sum()


def mae(example, imgs):
    module, centroids = example("mae_style"), torch.randn(9, 48)
    tokens = nearest(per_patch_norm(patches(imgs)), centroids)
    return (
        module.MaskedAutoencoderViT(9, 16),
        lambda m: encode_mae(m, imgs),
        lambda m, x, mask: module.loss_after(m, imgs, x, mask, centroids),
        lambda m, x, mask: mean_cross_entropy(m.decoder_pred, x, tokens, mask),
    )


def mae_before(example, imgs):
    module = example("mae_style")

    def squared_error(m, x, mask):
        error = m.decoder_pred(x[:, 1:]) - per_patch_norm(patches(imgs))
        return (error.square().sum(-1) / 48 * mask).sum() / mask.sum()

    return (
        module.MaskedAutoencoderViT(48, 16),
        lambda m: encode_mae(m, imgs),
        lambda m, x, mask: module.loss_before(m, imgs, x, mask),
        squared_error,
    )


def encode_mae(model, imgs):
    latent, mask, ids_keep = model.forward_encoder(imgs, 0.75)
    assert mask.sum(1).tolist() == [12.0] * 4
    return model.forward_decoder(latent, ids_keep), mask


def beit(example, imgs, name="loss_after"):
    module, centroids = example("beit_style"), torch.randn(9, 48)
    tokens = nearest(patches(imgs), centroids)
    last = centroids if name == "loss_after" else module.Tokenizer(centroids)

    def encode(m):
        mask = module.block_masks(len(imgs), 4)
        assert mask.sum(1).unique().numel() > 1  # images hide different numbers of patches
        return m.forward_features(imgs, mask), mask

    return (
        module.VisionTransformerForMaskedImageModeling(9, 16),
        encode,
        lambda m, x, mask: getattr(module, name)(m, imgs, x, mask, last),
        lambda m, x, mask: mean_cross_entropy(m.lm_head, x, tokens, mask),
    )


def clustermim(example, imgs, name="loss_after"):
    module = example("clustermim_style")
    tokenizer, kcenters = module.FrozenNetwork().double(), 0.3 * torch.randn(9, 24).double()
    tokens = nearest(tokenizer(imgs), kcenters)
    return (
        example("mae_style").MaskedAutoencoderViT(9, 16),
        lambda m: encode_mae(m, imgs),
        lambda m, x, mask: getattr(module, name)(m, imgs, x, mask, tokenizer, kcenters),
        lambda m, x, mask: mean_cross_entropy(m.decoder_pred, x, tokens, mask, 0.1),
    )


beit_before = partial(beit, name="loss_before")
clustermim_before = partial(clustermim, name="loss_before")
CASES = {
    "mae": mae, "mae, before": mae_before, "beit": beit, "beit, before": beit_before,
    "clustermim": clustermim, "clustermim, before": clustermim_before,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_the_formulas(example, case):
    """Of every parameter, in float64: a few thousand terms, rounded a few times each."""
    imgs = torch.randn(4, 3, 16, 16).double()
    model, encode, loss, formula = CASES[case](example, imgs.float().double())
    model.double()
    found = []
    for function in (loss, formula):
        torch.manual_seed(1)  # the masks
        value = function(model, *encode(model))
        found.append((value, torch.autograd.grad(value, list(model.parameters()))))
    (value, grads), (expected, expected_grads) = found
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    scale = max(g.abs().max() for g in expected_grads)
    assert scale > 1e-3
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * scale.item())


@pytest.mark.parametrize("name", STYLES)
def test_the_change_that_is_shown_is_the_code_s(example, name):
    """Three statements of the old loss stand in the docstring, and the new loss's whole body."""
    module = example(name)
    shown = dict.fromkeys("-+", "")
    for line in module.__doc__.splitlines():
        if line.startswith(("    - ", "    + ")):
            shown[line[4]] += line[6:] + "\n"
    assert len(shown["-"].splitlines()) == 3
    for sign, function in (("-", module.loss_before), ("+", module.loss_after)):
        body = inspect.getsource(function).split('"""')[2]
        assert "".join(shown[sign].split()) == "".join(body.split()), name


@pytest.mark.parametrize("name", STYLES)
def test_runs_on_a_folder_and_both_losses_fall(example, name, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).resize((40, 36)).save(tmp_path / f"{index}.png")
    example(name).main(str(tmp_path), steps=4)
    before, after, last = capsys.readouterr().out.splitlines()
    losses = [[float(v) for v in re.findall(r"\d+\.\d+", line)] for line in (before, after)]
    assert all(start > end for start, end in losses)
    if name != "mae_style":
        # Float32 sums in two orders, 1e-6 of the loss or less, and four steps that follow them.
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert float(re.search(r"step: (\S+e-\d+)", last)[1]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", STYLES)
def test_runs_as_a_script(example, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 3
