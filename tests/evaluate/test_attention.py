"""The ten attention statistics against the definition, token by token in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast.evaluate.attention import STATISTICS, attention_statistics

VIEW = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


class Noise:
    def __init__(self, count, side=16):
        self.pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)

    def __len__(self):
        return len(self.pixels)

    def images(self, indices):
        return self.pixels[indices]


def encoder(name="vit_tiny_patch16_224", **options):
    made = timm.create_model(name, num_classes=0, **SMALL, **options).eval()
    for parameter in made.parameters():  # far from uniform attention, so that errors show
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def attention_of_vit(block, x):
    """Softmax attention [B, heads, T, T] and its projected output of timm's ViT block, float64."""
    y = block.norm1(x)
    count, tokens, width = y.shape
    heads = block.attn.num_heads
    qkv = (y @ block.attn.qkv.weight.T + block.attn.qkv.bias).view(count, tokens, 3, heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width // heads), -1)
    mixed = (weights @ v).transpose(1, 2).reshape(count, tokens, width)
    return weights, mixed @ block.attn.proj.weight.T + block.attn.proj.bias


def by_definition(weights, before, after, prefix):
    """Loops over images, heads and tokens of one block; names as in STATISTICS."""
    found = {name: [] for name in STATISTICS}
    tokens = weights.shape[-1]
    patches = range(prefix, tokens)
    for image in range(len(weights)):
        for a in weights[image].numpy():
            given = [sum(a[q][j] for j in patches) for q in range(tokens)]
            p = [[a[q][j] / given[q] for j in patches] for q in range(tokens)]
            entropy = [-sum(v * math.log(v) for v in row if v > 0) for row in p]
            found["cls_to_cls"].append(a[0][0])
            found["cls_to_cls_by_patches"].append(a[0][0] / given[0])
            found["cls_entropy"].append(entropy[0])
            found["cls_to_patch"].append(np.mean([a[0][j] for j in patches]))
            found["patch_to_itself"].append(np.mean([a[i][i] for i in patches]))
            found["patch_to_itself_by_patches"].append(
                np.mean([a[i][i] / given[i] for i in patches])
            )
            found["patch_to_cls"].append(np.mean([a[i][0] for i in patches]))
            found["patch_entropy"].append(np.mean([entropy[i] for i in patches]))
        ratio = after[image].norm(dim=-1) / before[image].norm(dim=-1)
        found["cls_update"].append(float(ratio[0]))
        found["patch_update"].append(float(ratio[prefix:].mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.parametrize("registers", [0, 2])
def test_equals_the_definition(registers):
    made = encoder(reg_tokens=registers)
    images = Noise(3)
    found = attention_statistics(made, images, batch_size=2, **VIEW)
    assert (found.images, found.patches, found.heads) == (3, 16, 2)
    exact = made.double()
    x = ((images.pixels.double() / 255) - 0.5) / 0.25
    with torch.no_grad():
        x = exact._pos_embed(exact.patch_embed(x))
        for number, block in enumerate(exact.blocks):
            weights, after = attention_of_vit(block, x)
            expected = by_definition(weights, x, after, 1 + registers)
            for name in STATISTICS:
                # Float32 forward passes of two blocks of width 32: 1e-5 is some 100 roundings.
                assert float(found.values[name][number]) == pytest.approx(
                    expected[name], rel=2e-5, abs=1e-7
                ), (number, name)
            x = block(x)


def test_uniform_attention_has_known_statistics():
    """Zero queries attend to all 17 tokens alike."""
    made = encoder()
    with torch.no_grad():
        for block in made.blocks:
            block.attn.qkv.weight[:32] = 0
            block.attn.qkv.bias[:32] = 0
    found = attention_statistics(made, Noise(3), **VIEW).values
    expected = {
        "cls_to_cls": 1 / 17,
        "patch_to_itself": 1 / 17,
        "cls_to_cls_by_patches": 1 / 16,
        "patch_to_itself_by_patches": 1 / 16,
        "cls_to_patch": 1 / 17,
        "patch_to_cls": 1 / 17,
        "cls_entropy": math.log(16),
        "patch_entropy": math.log(16),
    }
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], torch.full((2,), value, dtype=torch.float64), rtol=1e-5, atol=0
        )


def test_a_cls_that_sees_only_itself_gives_numbers():
    """Attention 1 to [cls] leaves nothing to patches: entropy 0, an infinite ratio, no NaN."""
    made = encoder()

    def to_cls(_module, inputs):
        weights = torch.zeros_like(inputs[0])
        weights[..., 0] = 1
        return (weights,)

    for block in made.blocks:
        block.attn.attn_drop.register_forward_pre_hook(to_cls)
    found = attention_statistics(made, Noise(2), **VIEW).values
    assert found["cls_entropy"].tolist() == [0, 0]
    assert found["cls_to_cls"].tolist() == [1, 1]
    assert found["cls_to_cls_by_patches"].isinf().all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("beit_base_patch16_224", {}),
        ("eva02_tiny_patch14_224", {}),
        ("deit3_small_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_small_patch16_rope_224", {}),
    ],
)
def test_any_plain_vit(name, options):
    """Rows of the attention sum to 1, whatever makes them: relative positions, rotary ones, ..."""
    made = encoder(name, **options)
    prefix = made.num_prefix_tokens
    found = attention_statistics(made, Noise(2), **VIEW)
    total = found.values["cls_to_cls"] + found.patches * found.values["cls_to_patch"]
    if prefix == 1:
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-5, atol=0)
    assert all(v.isfinite().all() for v in found.values.values())


def test_without_cls():
    made = encoder(class_token=False, global_pool="avg")
    found = attention_statistics(made, Noise(2), **VIEW).values
    assert found["cls_entropy"].isnan().all()
    assert found["patch_to_cls"].isnan().all()
    assert found["patch_entropy"].isfinite().all()


def test_the_encoder_is_as_it_was():
    made = encoder().train()
    made.blocks[1].eval()
    made.blocks[0].attn.fused_attn = True
    made.blocks[1].attn.fused_attn = False
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in made.modules()]
    one = attention_statistics(made, Noise(2), **VIEW).values
    assert made.training
    assert made.blocks[0].attn.training
    assert not made.blocks[1].training
    assert [block.attn.fused_attn for block in made.blocks] == [True, False]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in made.modules()]
    assert set(one) == set(STATISTICS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 1)}),
        ("xcit_nano_12_p16_224", {"depth": 1}),
        # its [cls] joins after these blocks: the first patch would be taken for it
        ("cait_xxs24_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}),
    ],
)
def test_other_networks_are_refused(name, options):
    made = timm.create_model(name, num_classes=0, **options)
    with pytest.raises(ValueError, match=r"expected (a|1 prefix)"):
        attention_statistics(made, Noise(1, 224), **VIEW)
    with pytest.raises(ValueError, match="at least one image"):
        attention_statistics(encoder(), Noise(0), **VIEW)
