"""CCViT's step against its formula, written out in float64 with loops over patches and layers."""

from __future__ import annotations

import math

import pytest
import torch

from clustermim_fast.losses import LossConfig
from clustermim_fast.masking import Masks, visible_indices
from clustermim_fast.models import ModelConfig, create_model
from clustermim_fast.tokenizers import PixelTokenizer
from clustermim_fast.train.step import forward_step

ROWS, COLUMNS, P, K = 2, 3, 2, 5
MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


def config(**changes):
    values = {"encoder": "beit_base_patch16_224", "patch_size": P, "embed_dim": 12, "depth": 4,
              "num_heads": 2, "early_layer": 2, **changes}  # fmt: skip
    return ModelConfig(**values)


def relative_bias(table, heads):
    """[heads, 1 + L, 1 + L]: one number for each displacement, and three for pairs with [cls]."""
    places = [None] + [(y, x) for y in range(ROWS) for x in range(COLUMNS)]
    last = (2 * ROWS - 1) * (2 * COLUMNS - 1)
    rows = []
    for a in places:
        row = []
        for b in places:
            if a is None and b is None:
                row.append(table[last + 2])
            elif b is None:
                row.append(table[last + 1])
            elif a is None:
                row.append(table[last])
            else:
                y, x = a[0] - b[0] + ROWS - 1, a[1] - b[1] + COLUMNS - 1
                row.append(table[y * (2 * COLUMNS - 1) + x])
        rows.append(torch.stack(row))
    return torch.stack(rows).permute(2, 0, 1)


def norm(module, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred**2).mean(-1, keepdim=True).add(module.eps).sqrt() * module.weight + (
        module.bias
    )


def block(module, x, bias):
    """Attention with a bias on its scores and none on the keys, then the MLP; one image [T, D]."""
    y, attention = norm(module.norm1, x), module.attn
    width = x.shape[1]
    q, k, v = (y @ part.T for part in attention.qkv.weight.split(width))
    q, v = q + attention.q_bias, v + attention.v_bias
    outputs = []
    for head in range(2):
        part = slice(head * width // 2, (head + 1) * width // 2)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width / 2) + bias[head]
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        outputs.append(weights @ v[:, part])
    mixed = torch.cat(outputs, 1) @ attention.proj.weight.T + attention.proj.bias
    x = x + module.gamma_1 * mixed
    y = norm(module.norm2, x) @ module.mlp.fc1.weight.T + module.mlp.fc1.bias
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    return x + module.gamma_2 * (y @ module.mlp.fc2.weight.T + module.mlp.fc2.bias)


def cross_entropy(head, x, target, smoothing):
    scores = head.weight @ x + head.bias
    log_p = scores - scores.exp().sum().log()
    return -(1 - smoothing) * log_p[target] - smoothing * log_p.mean()


def paper_losses(model, images, centroids, hidden, replaced, smoothing=0.0, cover="corrupted"):
    """(mean cross-entropy, mean squared error) over the covered patches of all images."""
    encoder = model.encoder
    mean, std = torch.tensor(MEAN).double(), torch.tensor(STD).double()
    ids, squares = [], []
    bias = relative_bias(encoder.rel_pos_bias.relative_position_bias_table, 2)
    for image, is_hidden, is_replaced in zip(images.double() / 255, hidden, replaced, strict=True):
        patches = [
            image[:, y * P : y * P + P, x * P : x * P + P].permute(1, 2, 0)
            for y in range(ROWS)
            for x in range(COLUMNS)
        ]
        targets = [((patch.reshape(-1) - centroids) ** 2).sum(1).argmin() for patch in patches]
        tokens = [encoder.cls_token[0, 0]]
        for i, patch in enumerate(patches):
            if is_hidden[i]:
                tokens.append(model.mask_token)
                continue
            seen = centroids[targets[i]].view(P, P, 3) if is_replaced[i] else patch
            weight = encoder.patch_embed.proj.weight
            pixels = ((seen - mean) / std).permute(2, 0, 1).reshape(-1)
            tokens.append(weight.reshape(len(weight), -1) @ pixels + encoder.patch_embed.proj.bias)
        x = torch.stack(tokens)
        layers = []
        for module in encoder.blocks:
            x = block(module, x, bias)
            layers.append(x)
        branch = torch.cat([x[:1], layers[1][1:]])
        for module in model.branch_blocks:
            branch = block(module, branch, bias)
        x, branch = norm(encoder.norm, x), norm(model.branch_norm, branch)
        for i, patch in enumerate(patches):
            counted = {
                "corrupted": is_hidden[i] or is_replaced[i], "masked": is_hidden[i], "all": True
            }[cover]  # fmt: skip
            if not counted:
                continue
            ids.append(cross_entropy(model.head["tokens"], x[1 + i], targets[i], smoothing))
            if "pixels" in model.head:
                wanted = patch.reshape(-1)
                wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
                head = model.head["pixels"]
                squares.append(((head.weight @ branch[1 + i] + head.bias - wanted) ** 2).mean())
            else:
                squares.append(
                    cross_entropy(model.head["tokens"], branch[1 + i], targets[i], smoothing)
                )
    return sum(ids) / len(ids), sum(squares) / len(squares)


@pytest.fixture
def batch():
    images = torch.randint(0, 256, (3, 3, ROWS * P, COLUMNS * P), dtype=torch.uint8)
    hidden = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 1]]).bool()
    replaced = torch.tensor([[0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()
    tokenizer = PixelTokenizer.from_centroids(torch.rand(K, 3 * P * P), P)
    return images, Masks(hidden, visible_indices(hidden | replaced, 3), replaced), tokenizer


def step(model, batch, **options):
    images, masks, tokenizer = batch
    scale = (torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1))
    options = LossConfig(norm_pix_loss=True, **options)
    return forward_step(model, tokenizer, images, masks, *scale, options)


def randomise(model):
    """Zeros (biases, relative positions) and 0.1 (layer scale) would hide a missing term."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or "position" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
        else:
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize(
    ("model_changes", "options"),
    [
        ({}, {}),
        ({}, {"label_smoothing": 0.1, "token_weight": 0.5, "pixel_weight": 2.0}),
        ({}, {"token_patches": "masked", "pixel_patches": "masked"}),
        ({}, {"token_patches": "all", "pixel_patches": "all"}),
        ({"shared_head": True}, {}),
    ],
    ids=["paper", "weights", "masked", "all", "shared head"],
)
def test_step_equals_the_papers_formula(batch, model_changes, options):
    model = create_model("ccvit", config(**model_changes), (ROWS * P, COLUMNS * P), K)
    randomise(model)
    result = step(model, batch, **options)
    result.loss.backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters()}
    model.zero_grad()

    images, masks, tokenizer = batch
    model.double()
    cover = options.get("token_patches", "corrupted")
    ids, squares = paper_losses(
        model, images, tokenizer.centroids.double(), masks.mask, masks.replaced,
        options.get("label_smoothing", 0.0), cover,
    )  # fmt: skip
    truth = options.get("token_weight", 1.0) * ids + options.get("pixel_weight", 1.0) * squares
    truth.backward()
    # float32 through four blocks of width 12: some hundred roundings of 6e-8, values of order 1
    assert float(result.parts["token_loss"]) == pytest.approx(float(ids.detach()), rel=5e-6)
    assert float(result.parts["branch_loss"]) == pytest.approx(float(squares.detach()), rel=5e-6)
    assert float(result.loss.detach()) == pytest.approx(float(truth.detach()), rel=5e-6)
    scale = max(float(p.grad.abs().max()) for p in model.parameters())
    for name, parameter in model.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() < 1e-5 * scale, name


def test_the_image_shows_centroids_where_patches_are_replaced(batch, monkeypatch):
    """Read off what the model is given: the whole image, two thirds of it untouched."""
    images, masks, tokenizer = batch
    model = create_model("ccvit", config(), (ROWS * P, COLUMNS * P), K)
    shown = []
    monkeypatch.setattr(
        model, "forward", lambda x, *rest: shown.append(x) or type(model).forward(model, x, *rest)
    )
    tokens = step(model, batch).tokens
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    pixels = shown[0] * std + mean
    for b in range(3):
        for i in range(ROWS * COLUMNS):
            y, x = P * (i // COLUMNS), P * (i % COLUMNS)
            patch = pixels[b, :, y : y + P, x : x + P]
            wanted = images[b, :, y : y + P, x : x + P] / 255
            if masks.replaced[b, i]:
                wanted = tokenizer.centroids[tokens[b, i]].view(P, P, 3).permute(2, 0, 1)
            assert torch.allclose(patch, wanted, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"shared_head": True}, {"shared_rel_pos": False}], ids=str)
def test_gradients_reach_every_parameter(batch, changes):
    model = create_model("ccvit", config(**changes), (ROWS * P, COLUMNS * P), K)
    step(model, batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_hidden_patches_are_not_seen_and_the_branch_joins_early(batch):
    images, masks, _ = batch
    pixels = images.float()
    model = create_model("ccvit", config(), (ROWS * P, COLUMNS * P), K).eval()
    where = masks.mask.view(3, 1, ROWS, COLUMNS).repeat_interleave(P, 2).repeat_interleave(P, 3)
    changed = torch.where(where, torch.randn_like(pixels), pixels)
    for ours, theirs in zip(model(pixels, masks.mask), model(changed, masks.mask), strict=True):
        assert torch.equal(ours, theirs)
    # The squared error reaches the blocks after the early layer through [cls] alone.
    model(pixels, masks.mask).branch[:, 1:].sum().backward()
    assert model.encoder.blocks[3].attn.qkv.weight.grad.abs().sum() > 0
    late = create_model("ccvit", config(early_layer=4), (ROWS * P, COLUMNS * P), K).eval()
    assert not torch.allclose(late(pixels, masks.mask).branch, model(pixels, masks.mask).branch)


def test_nothing_hidden_is_the_timm_encoder(batch):
    pixels = torch.randn(2, 3, ROWS * P, COLUMNS * P)
    model = create_model("ccvit", config(), (ROWS * P, COLUMNS * P), K).eval()
    nothing = torch.zeros(2, ROWS * COLUMNS, dtype=torch.bool)
    assert torch.equal(model(pixels, nothing).tokens, model.encoder.forward_features(pixels))


def test_papers_sizes():
    """The reference code's counts: 106.7 M parameters with K = 8192, 85.7 M in the encoder."""
    with torch.device("meta"):
        model = create_model("ccvit", ModelConfig("beit_base_patch16_224"), (224, 224), 8192)
        large = create_model("ccvit", ModelConfig("beit_large_patch16_224"), (224, 224), 8192)
    count = sum(p.numel() for p in model.parameters())
    assert (round(count / 1e6, 1), model.early_layer, len(model.branch_blocks)) == (106.7, 9, 2)
    assert round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 1) == 85.7
    assert large.early_layer == 21


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "vit_tiny_patch16_224"}, "it is a VisionTransformer.*Names that work: beit"),
        ({"encoder": "beit_bas_patch16_224"}, "did you mean.*beit_base_patch16_224"),
        ({"early_layer": 5}, "one of the layers 1 to 4"),
        ({"patch_size": 5}, "not a multiple of patch_size 5"),
        ({"class_token": False}, "timm cannot make"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        create_model("ccvit", config(**changes), (4, 6), K)


def test_how_the_branch_starts():
    """As the encoder's blocks: LayerScale, deviation 0.02, outputs over the root of 2 x depth."""
    model = create_model("ccvit", config(embed_dim=64, init_values=0.3), (ROWS * P, COLUMNS * P), K)
    for layer, module in enumerate(model.branch_blocks, 3):
        assert (module.gamma_1 == 0.3).all()
        assert (module.gamma_2 == 0.3).all()
        for name, wanted in (("attn.qkv", 0.02), ("mlp.fc1", 0.02),
                             ("attn.proj", 0.02 / (2 * layer) ** 0.5),
                             ("mlp.fc2", 0.02 / (2 * layer) ** 0.5)):  # fmt: skip
            # 4096 values at least: their deviation is within 1 / sqrt(2 n) = 1.1 %, five of them
            weight = module.get_parameter(f"{name}.weight")
            assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.055)
        assert not module.mlp.fc1.bias.any()
    without = create_model("ccvit", config(init_values=0.0), (ROWS * P, COLUMNS * P), K)
    assert without.branch_blocks[0].gamma_1 is None


def test_first_losses():
    """Before training: about ln K for the ids, about 1 for pixels of mean 0 and variance 1."""
    model = create_model("ccvit", config(embed_dim=64, patch_size=4), (32, 32), 50)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    hidden = torch.zeros(16, 64, dtype=torch.bool)
    hidden[:, :30] = True
    replaced = hidden.roll(30, 1)
    tokenizer = PixelTokenizer.from_centroids(torch.rand(50, 48), 4)
    parts = step(
        model, (images, Masks(hidden, visible_indices(hidden | replaced), replaced), tokenizer)
    ).parts
    assert float(parts["token_loss"]) == pytest.approx(math.log(50), abs=0.3)
    assert float(parts["branch_loss"]) == pytest.approx(1.0, abs=0.2)
