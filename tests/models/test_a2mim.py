"""A2MIM: what it shows, where the token goes, its losses against float64 sums, its decoder."""

from __future__ import annotations

import cmath
import dataclasses
import math

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
