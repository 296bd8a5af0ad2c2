"""The methods on visible patches, on every kind of encoder that is allowed."""

from __future__ import annotations

import pytest
import timm
import torch

from clustermim_fast.losses import OBJECTIVES, LossConfig, Targets
from clustermim_fast.masking import random_mask, visible_indices
from clustermim_fast.models import (
    ModelConfig,
    create_model,
    list_methods,
    register_method,
    sincos_positions,
)

METHODS = ["clustermim", "mae"]
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def config(**changes):
    values = {"encoder": "vit_tiny_patch16_224", "patch_size": 4, "decoder_depth": 1, **SMALL}
    return ModelConfig(**{**values, **changes})


def batch(model, size=(16, 16), count=3, clusters=7):
    images = torch.randn(count, 3, *size)
    mask = random_mask(model.num_patches, 0.75, 0, 0, range(count))
    tokens = torch.randint(0, clusters, (count, model.num_patches))
    masked = int(mask[0].sum())
    return images, Targets(images, tokens, mask, masked, model.patch_size)


def loss_of(model, images, targets, options=None):
    hidden = model(images, targets.mask)
    objective = OBJECTIVES[model.objective]
    return objective(hidden, model.head, targets, options or LossConfig())[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"reg_tokens": 3},
        {"class_token": False},
        {"encoder": "deit3_small_patch16_224"},  # no position for [cls]
        {"encoder": "vit_small_patch14_reg4_dinov2"},  # registers, layer scale
        {"encoder": "vit_base_patch16_clip_224"},  # norm before the blocks
        {"encoder": "vit_base_patch16_siglip_224"},  # pooling head, no [cls]
    ],
    ids=lambda value: value.get("encoder") or "-".join(value) or "plain",
)
def test_gradients_reach_every_trainable_parameter(method, encoder):
    model = create_model(method, config(**encoder), (16, 16), 7)
    images, targets = batch(model)
    loss_of(model, images, targets).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name == "encoder.pos_embed"
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            if not name.endswith("attn.qkv.bias"):  # the key's bias has no effect on a softmax
                assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (32, 12)])
def test_non_square_images(method, size):
    model = create_model(method, config(), size, 7)
    images, targets = batch(model, size)
    assert model.grid == (size[0] // 4, size[1] // 4)
    hidden = model(images, targets.mask)
    assert hidden.shape == (3, model.num_patches + 1, model.decoder_embed.out_features)
    assert torch.isfinite(loss_of(model, images, targets))


@pytest.mark.parametrize("method", METHODS)
def test_hidden_patches_are_not_seen(method):
    model = create_model(method, config(), (16, 16), 7).eval()
    images, targets = batch(model)
    pixels = targets.mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(model(images, targets.mask), model(changed, targets.mask))
    visible = images.clone()
    visible[~pixels.expand_as(images)] += 1.0
    assert not torch.equal(model(images, targets.mask), model(visible, targets.mask))


def test_nothing_hidden_equals_the_timm_encoder():
    """With every patch visible the encoder's tokens are forward_features of the same timm model."""
    model = create_model("clustermim", config(reg_tokens=2), (16, 16), 7).eval()
    images = torch.randn(2, 3, 16, 16)
    everything = torch.arange(16).expand(2, -1)
    ours = model.encode(images, everything)
    assert torch.allclose(ours, model.encoder.forward_features(images), atol=1e-6)


def test_visible_indices_change_nothing():
    model = create_model("clustermim", config(), (16, 16), 7).eval()
    images, targets = batch(model)
    given = model(images, targets.mask, visible_indices(targets.mask, 4))
    assert torch.equal(given, model(images, targets.mask))


def test_same_seed_same_weights_and_the_generator_is_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = create_model("clustermim", config(), (16, 16), 7, seed=3).state_dict()
    assert torch.equal(torch.rand(1), wanted)
    second = create_model("clustermim", config(), (16, 16), 7, seed=3).state_dict()
    other = create_model("clustermim", config(), (16, 16), 7, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_position_table():
    """Against the definition, entry by entry."""
    import math

    table = sincos_positions((2, 3), 8, num_prefix_tokens=1)
    assert table.shape == (7, 8)
    assert (table[0] == 0).all()
    for row in range(2):
        for column in range(3):
            entry = table[1 + row * 3 + column]
            for half, position in ((0, column), (1, row)):
                for i in range(2):
                    angle = position / 10000 ** (i / 2)
                    assert math.isclose(entry[4 * half + i], math.sin(angle), abs_tol=1e-7)
                    assert math.isclose(entry[4 * half + 2 + i], math.cos(angle), abs_tol=1e-7)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions((2, 2), 6)


def test_the_encoders_positions_are_the_fixed_ones():
    model = create_model("clustermim", config(), (8, 24), 7)
    wanted = sincos_positions((2, 6), 32, 1)
    assert torch.equal(model.encoder.pos_embed[0], wanted)
    assert type(model.encoder) is timm.models.vision_transformer.VisionTransformer
    deit3 = create_model("clustermim", config(encoder="deit3_small_patch16_224"), (16, 16), 7)
    assert deit3.encoder.pos_embed.shape == (1, 16, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet18"}, "it is a ResNet.*Names that work: vit_tiny"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "it is a SwinTransformer"),
        ({"encoder": "beit_base_patch16_224"}, "it is a Beit"),
        ({"encoder": "deit_tiny_distilled_patch16_224"}, "VisionTransformerDistilled"),
        ({"encoder": "vit_small_r26_s32_224"}, "patch embedding is a Hybrid"),
        ({"encoder": "vit_tiny_patch16_225"}, "did you mean.*vit_tiny_patch16_224"),
        ({"patch_size": 5}, "not a multiple of patch_size 5"),
        ({"num_heads": 5}, "timm cannot make"),
        ({"decoder_dim": 30}, "multiple of 4"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        create_model("clustermim", config(**changes), (16, 16), 7)


def test_registry():
    assert {"clustermim", "mae"} <= set(list_methods())
    with pytest.raises(ValueError, match=r"method must be one of a2mim, ccvit, clustermim, mae"):
        create_model("simmim", config(), (16, 16), 7)
    with pytest.raises(ValueError, match="registered already"):
        register_method("mae")(torch.nn.Module)


def test_default_decoder_sizes():
    from clustermim_fast.models.masked_autoencoder import decoder_sizes

    # methods: S 256 / 8 / 8, B and larger 512 / 8 / 16
    assert decoder_sizes(ModelConfig(), 384, 12) == (256, 8, 8)
    assert decoder_sizes(ModelConfig(), 768, 12) == (512, 8, 16)
    assert decoder_sizes(ModelConfig(), 128, 6) == (64, 2, 2)
    assert decoder_sizes(ModelConfig(decoder_dim=96, decoder_depth=3), 128, 6) == (96, 3, 3)
