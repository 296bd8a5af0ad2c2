"""What every method does in a run: learns a batch by heart, goes on bit for bit."""

from __future__ import annotations

import math

import pytest
import timm
import torch

from clustermim_fast import train
from clustermim_fast.models import create_model, list_methods
from clustermim_fast.optim import create_optimizer, set_learning_rate
from clustermim_fast.train.batches import Plan, TrainingBatches
from clustermim_fast.train.step import forward_step
from tests.train.runs import QUIET, cut_after, rows, states_equal

# timm's own test networks where it has them: ten times smaller than its smallest named ones
RESNET, CONVNEXT = (
    test if timm.is_model(test) else small
    for test, small in (("test_resnet", "resnet10t"), ("test_convnext", "convnext_atto"))
)


def convolutional(name):
    """Settings of `tiny` for a network that has no widths to choose."""
    widths = ("embed_dim", "depth", "num_heads", "patch_size")
    return {"method": "a2mim", "model__encoder": name, "model__output_stride": 8, "img_size": 16,
            "mask__unit": 8, **{f"model__{width}": None for width in widths}}  # fmt: skip


WIDER = {"model__embed_dim": 32, "model__depth": 2, "model__decoder_dim": 32}


@pytest.mark.parametrize(
    "settings",
    [*({"method": method, **WIDER} for method in list_methods()), convolutional(RESNET),
     convolutional(CONVNEXT)],
    ids=lambda settings: settings.get("model__encoder", settings["method"]),
)  # fmt: skip
def test_overfits_one_batch(tiny, settings):
    """The same crops and masks over and over are learned by heart."""
    config = tiny(**settings)
    images = train.open_run_images(config)
    config = train.resolve(config, images)
    tokenizer = train.prepare_tokenizer(config, images)
    model = create_model(config.method, config.model, images.image_size, tokenizer.num_clusters)
    batches = TrainingBatches(images, config.data, config.mask, model.patch_size, seed=0)
    batch = batches[next(Plan.of(len(images), 8, 1, 1, 0).keys(0))]
    optimizer = create_optimizer(model, config.optim)
    set_learning_rate(optimizer, 3e-3)
    scale = (
        torch.tensor(config.data.mean).view(3, 1, 1),
        torch.tensor(config.data.std).view(3, 1, 1),
    )
    losses = []
    for _ in range(300):
        step = forward_step(model, tokenizer, batch.images, batch.masks, *scale, config.loss)
        step.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(step.loss.detach()))
        if losses[-1] < 0.15 * losses[0]:
            break
    assert losses[-1] < 0.15 * losses[0]


@pytest.mark.parametrize("kind", ["block", "inverse_block"])
def test_other_masks(tiny, kind):
    said = []
    result = train.run(tiny(method="mae", mask__kind=kind, mask__unit=6), say=said.append)
    assert math.isfinite(result.final_loss)
    assert any(line.startswith(f"mask: 12 of 16 patches, {kind}") for line in said)


def test_a_method_names_the_masks_it_knows(tiny):
    with pytest.raises(ValueError, match="not defined for method mae; choose one of random, block"):
        train.run(tiny(method="mae", mask__kind="replaced"), **QUIET)


@pytest.mark.parametrize(
    "settings",
    [*({"method": method} for method in list_methods()), convolutional(RESNET),
     convolutional(CONVNEXT)],
    ids=lambda settings: settings.get("model__encoder", settings["method"]),
)  # fmt: skip
def test_every_method_resumes_bit_for_bit(tiny, tmp_path, threads, settings):
    """Stopped within an epoch; windows of the log and batch norms' statistics included."""
    threads(1)
    whole = train.run(tiny(out=tmp_path / "whole", **settings), **QUIET)
    options = {**settings, "out": tmp_path / "cut", "log__checkpoint_every_steps": 3}
    with cut_after(3):
        train.run(tiny(**options), **QUIET)
    cut = train.run(tiny(**options), **QUIET)
    assert cut.final_loss == whole.final_loss
    assert rows(cut.run_dir) == rows(whole.run_dir)
    assert states_equal(whole.run_dir, cut.run_dir)


def test_a_codebook_of_unnormalised_pixels_for_ccvit(tiny):
    """Its centroids are pixels in [0, 1]; one fitted after mean and std is refused, and so are
    centroids that cannot be shown."""
    run = train.load_run(train.run(tiny(method="ccvit"), **QUIET).run_dir)
    assert run.tokenizer.mean is None
    low, high = run.tokenizer.centroids.aminmax()
    assert 0.0 <= float(low) <= float(high) <= 1.0
    assert run.config.tokenizer.normalize is False
    other = train.run(tiny(method="clustermim", out=f"{tiny().out}_b"), **QUIET).run_dir
    file = other / "tokenizer.safetensors"
    with pytest.raises(ValueError, match=r"tokenizer\.normalize = false stands for 0 and 1"):
        train.run(tiny(method="ccvit", tokenizer=file, out=f"{other}_c"), **QUIET)
    normalised = tiny(
        tokenizer__per_patch_norm="yes", tokenizer__normalize="no", out=f"{tiny().out}_n"
    )
    file = train.run(normalised, **QUIET).run_dir / "tokenizer.safetensors"
    with pytest.raises(ValueError, match=r"those of features, of .* are no pixels"):
        train.run(tiny(method="ccvit", tokenizer=file, out=f"{other}_c"), **QUIET)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"tokenizer__kind": "feature"}, "tokenizer.kind=pixel"),
        ({"tokenizer__metric": "cosine"}, "tokenizer.metric=euclidean"),
        ({"tokenizer__per_patch_norm": "yes"}, "tokenizer.per_patch_norm=False"),
    ],
)
def test_ccvit_refuses_centroids_that_are_no_pixels_by_the_settings(tiny, settings, remedy):
    """Before an image is opened or anything is fitted; with other masks nothing is shown."""
    with pytest.raises(ValueError, match=f"no pixels.* take {remedy}, or mask.kind=block"):
        tiny(method="ccvit", **settings)
    assert tiny(method="ccvit", mask__kind="block", **settings).method == "ccvit"
