"""A2MIM: what it shows, where the token goes, its decoder, its settings, what it refuses."""

from __future__ import annotations

import pytest
import timm
import torch

from clustermim_fast.losses import LossConfig, Targets, image_loss
from clustermim_fast.masking import MaskConfig, Masker
from clustermim_fast.models import A2MIM, ModelConfig, create_model
from clustermim_fast.optim import OptimConfig, create_optimizer, set_learning_rate

VIT = {"encoder": "vit_tiny_patch16_224", "patch_size": 4, "embed_dim": 24, "depth": 3,
       "num_heads": 2}  # fmt: skip
# timm's own test networks where it has them: ten times smaller than its smallest named ones
RESNET, CONVNEXT = (
    test if timm.is_model(test) else small
    for test, small in (("test_resnet", "resnet10t"), ("test_convnext", "convnext_atto"))
)
NETWORKS = [
    VIT,
    {**VIT, "mask_layer": 2, "reg_tokens": 2},
    {**VIT, "class_token": False},
    {"encoder": RESNET, "output_stride": 8},
    {"encoder": RESNET, "output_stride": 8, "mask_layer": 0},
    {"encoder": CONVNEXT, "output_stride": 8},
    {"encoder": CONVNEXT, "output_stride": 8, "mask_layer": 1, "token_mode": "add"},
]
SIZE = (16, 24)


def make(network, **changes):
    return create_model("a2mim", ModelConfig(**{**network, **changes}), SIZE, 7)


def batch(model, count=3):
    images = torch.randn(count, 3, *SIZE)
    masks = Masker(MaskConfig("random", 0.6), model.grid, model.patch_size)(0, 0, range(count))
    count = int(masks.mask[0].sum())
    return images, Targets(images, None, masks.mask, count, model.patch_size)


def pixels_of(mask, model):
    """bool [B, 1, H, W], with loops."""
    where = torch.zeros(len(mask), 1, *SIZE, dtype=torch.bool)
    p, columns = model.patch_size, model.grid[1]
    for b, row in enumerate(mask.tolist()):
        for i, hidden in enumerate(row):
            y, x = p * (i // columns), p * (i % columns)
            where[b, 0, y : y + p, x : x + p] = hidden
    return where


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_gradients_reach_every_trainable_parameter(network):
    model = make(network)
    for module in model.modules():  # timm's residual branches begin at zero
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    images, targets = batch(model)
    image_loss(model(images, targets.mask), model.head, targets, LossConfig()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert name.startswith("encoder.head.norm")  # ConvNeXt's norm behind its pooling


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_without_a_token_the_encoder_is_timms(network):
    model = make(network).eval()
    images, _ = batch(model)
    ours, theirs = model.features(images, lambda z: z), model.encoder.forward_features(images)
    if theirs.dim() == 3:
        theirs = theirs[:, model.encoder.num_prefix_tokens :].transpose(1, 2).reshape(ours.shape)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "layer", "shape", "patch"),
    [
        # the paper's table: ResNet-50 the input of its last stage; ConvNeXt after the downsampling
        ("resnet50", None, (1, 1024, 14, 14), 16),
        ("resnet50", 0, (1, 64, 56, 56), 4),
        ("convnext_tiny", None, (1, 768, 7, 7), 32),
        ("vit_base_patch16_224", None, (1, 196, 768), 16),
        ("vit_small_patch16_224", 8, (1, 196, 384), 16),
    ],
)
def test_places_of_the_token(name, layer, shape, patch):
    with torch.device("meta"):
        model = create_model("a2mim", ModelConfig(name, mask_layer=layer), (224, 224), 1)
        seen = []
        last = model.features(torch.empty(1, 3, 224, 224), lambda z: seen.append(z.shape) or z)
        assert model.head(last).shape == (1, 3, 224, 224)
    assert seen == [shape]
    assert model.patch_size == patch
    assert model.mask_token.shape == (shape[-1] if len(shape) == 3 else shape[1],)
    assert hasattr(model, "gamma") == (not name.startswith("vit"))


def test_layer_of_a_transformer_is_before_its_block():
    """Layer l: what blocks l - 1 gave, [cls] left out."""
    model = make(VIT, mask_layer=3).eval()
    images, _ = batch(model)
    seen = []
    model.features(images, lambda z: seen.append(z) or z)
    encoder = model.encoder
    tokens = encoder._pos_embed(encoder.patch_embed(images))
    assert torch.equal(seen[0], encoder.blocks[1](encoder.blocks[0](tokens))[:, 1:])


@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("network", [VIT, NETWORKS[3]], ids=["vit", "resnet"])
def test_hidden_squares_show_the_images_mean_colour(network, fill, monkeypatch):
    model = make(network, fill=fill).eval()
    images, targets = batch(model)
    shown = []
    monkeypatch.setattr(model, "features", lambda x, change: shown.append(x) or x)
    model(images, targets.mask)
    where = pixels_of(targets.mask, model)
    for b in range(3):
        for c in range(3):
            colour = images[b, c].double().mean() if fill == "mean" else 0.0
            for y in range(SIZE[0]):
                for x in range(SIZE[1]):
                    wanted = colour if where[b, 0, y, x] else images[b, c, y, x]
                    assert float(shown[0][b, c, y, x]) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("mode", ["add", "gated", "replace", "none"])
@pytest.mark.parametrize("network", [VIT, NETWORKS[3]], ids=["vit", "resnet"])
def test_token_modes(network, mode):
    """Each formula on each place of a map; a hidden patch may cover several places."""
    model = make(network, token_mode=mode, token_gamma=0.25)
    _, targets = batch(model)
    rows, columns = model.grid
    repeat = 1 if network is VIT else 2
    if network is VIT:
        z = torch.randn(3, rows * columns, 24)
        maps = z.transpose(1, 2).reshape(3, 24, rows, columns)
    else:
        width = 5 if mode == "none" else len(model.mask_token)
        z = maps = torch.randn(3, width, 2 * rows, 2 * columns)
    out = model.add_token(z, targets.mask)
    if network is VIT:
        out = out.transpose(1, 2).reshape(maps.shape)
    for b in range(3):
        for y in range(maps.shape[2]):
            for x in range(maps.shape[3]):
                here, m = maps[b, :, y, x], targets.mask[b, columns * (y // repeat) + x // repeat]
                token = model.mask_token if m and mode != "none" else 0.0
                kept = {"add": 1.0, "none": 1.0, "gated": 0.25, "replace": 0.0}[mode] if m else 1.0
                assert torch.allclose(out[b, :, y, x], kept * here + token, atol=1e-6)


def test_decoder_is_one_convolution_and_a_shuffle():
    model = make(NETWORKS[3])
    convolution, stride = model.head[0], 8
    features = torch.randn(1, convolution.in_channels, 2, 3)
    out = model.head(features)
    assert out.shape == (1, 3, *SIZE)
    for c, y, x in ((0, 0, 0), (1, 5, 17), (2, 15, 23), (0, 9, 8)):
        row = c * stride**2 + (y % stride) * stride + x % stride
        value = convolution.weight[row, :, 0, 0] @ features[0, :, y // stride, x // stride]
        value = value + convolution.bias[row]
        assert float(out[0, c, y, x].detach()) == pytest.approx(float(value.detach()), abs=1e-5)
    assert make(VIT, decoder_kernel=3).head[0].kernel_size == (3, 3)


@pytest.mark.parametrize(
    ("name", "weight", "focal", "spatial", "unmasked"),
    [
        ("vit_base_patch16_224", 0.1, True, "l1", 0.0),
        ("resnet50", 0.5, True, "focal_l1", 1e-3),
        ("resnet101", 0.1, False, "focal_l1", 1e-3),
        ("resnet152d", 0.1, False, "focal_l1", 1e-3),
        ("resnet200", 0.0, True, "focal_l1", 1e-3),
        ("convnext_base", 0.0, True, "focal_l1", 1e-3),
    ],
)
def test_released_settings_of_each_network(name, weight, focal, spatial, unmasked):
    values = A2MIM.defaults(name)
    assert values["loss.fourier_weight"] == weight
    assert values["loss.fourier_focal"] is focal
    assert values["loss.spatial"] == spatial
    assert values["loss.fourier_unmasked_weight"] == unmasked
    assert (values["mask.ratio"], values["mask.unit"]) == (0.6, 32)


def test_the_tokens_learning_rate_and_decay():
    model = make(VIT)
    optimizer = create_optimizer(model, OptimConfig(mask_token_lr=0.1))
    set_learning_rate(optimizer, 2.0)
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = next(n for n, p in model.named_parameters() if p is parameter)
            assert name not in found
            found[name] = (group["lr"], group["weight_decay"])
    assert found.pop("mask_token") == (pytest.approx(0.2), 0.0)
    assert found.keys() == {n for n, p in model.named_parameters() if n != "mask_token"}
    for name, (lr, decay) in found.items():
        matrix = name.endswith("weight") and model.get_parameter(name).dim() > 1
        assert (lr, decay) == (2.0, 0.05 if matrix else 0.0), name


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"encoder": "swin_tiny_patch4_window7_224"}, "it is a SwinTransformer"),
        ({"encoder": RESNET}, "not a multiple of 32.*output_stride"),
        ({"encoder": RESNET, "output_stride": 8, "patch_size": 4}, "a multiple of the 8 pixels"),
        ({"encoder": RESNET, "output_stride": 8, "mask_layer": 4}, "one of the layers 0 to 3"),
        ({"encoder": RESNET, "output_stride": 8, "depth": 3}, "timm cannot make"),
        ({**VIT, "mask_layer": 4}, "one of the layers 0 to 3"),
    ],
)
def test_refusals(network, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make(network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fill": "noise"}, r"model\.fill must be one of 'mean', 'zero'"),
        ({"token_mode": "gate"}, r"model\.token_mode must be one of 'add', 'gated'"),
        ({"output_stride": 4}, r"model\.output_stride must be one of 8, 16, 32"),
        ({"decoder_kernel": 2}, r"model\.decoder_kernel must be odd"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)
    with pytest.raises(ValueError, match=r"loss\.spatial must be one of"):
        LossConfig(spatial="l2")
    with pytest.raises(ValueError, match=r"loss\.fourier_unmasked must be one of"):
        LossConfig(fourier_unmasked="zero")
    with pytest.raises(ValueError, match=r"loss\.fourier_weight must be at least 0"):
        LossConfig(fourier_weight=-1.0)
