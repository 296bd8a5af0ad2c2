"""FeatureTokenizer: features against hooks on timm, and ids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import timm
from safetensors.torch import save_file

from clustermim_fast.tokenizers import FeatureTokenizer, load_tokenizer, token_class_counts
from clustermim_fast.tokenizers.feature_network import FeatureNetwork
from tests.tokenizers.feature_networks import (
    MEAN,
    NAME,
    OPTIONS,
    STD,
    given,
    normalised,
    random_vit,
)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("apply_norm", [True, False])
def test_features_are_those_of_the_block(vit, network, photos, layer, apply_norm):
    seen = {}
    handle = vit.blocks[layer].register_forward_hook(lambda m, i, out: seen.update(out=out))
    vit.forward_features(normalised(photos[:4]))
    handle.remove()
    wanted = vit.norm(seen["out"]) if apply_norm else seen["out"]
    tokenizer = given(network, layer=layer, apply_norm=apply_norm)
    found = tokenizer.features(photos[:4])
    assert found.shape == (4, 4, 4, 16)
    torch.testing.assert_close(found.flatten(1, 2), wanted[:, 1:], atol=1e-5, rtol=1e-5)
    floats = tokenizer.features(photos[:4].float() / 255)
    torch.testing.assert_close(found, floats, atol=1e-5, rtol=1e-5)
    again = tokenizer.features(normalised(photos[:4]), normalized=True)
    torch.testing.assert_close(found, again, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch14_reg4_dinov2", {}),  # [cls] and four registers
        ("deit_tiny_distilled_patch16_224", {}),  # [cls] and [dist]
        (NAME, {"class_token": False, "global_pool": "avg"}),
    ],
)
def test_prefix_tokens_are_dropped(name, options, photos, tmp_path):
    vit = random_vit(name, **options)
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    tokenizer = FeatureTokenizer.from_centroids(
        torch.zeros(1, 16),
        name,
        weights=tmp_path / "w.safetensors",
        model_options={**OPTIONS, **options},
        mean=MEAN,
        std=STD,
        apply_norm=False,
    )
    seen = {}
    vit.blocks[-1].register_forward_hook(lambda m, i, out: seen.update(out=out))
    vit.forward_features(normalised(photos[:2]))
    wanted = seen["out"][:, -16:]
    assert seen["out"].shape[1] - 16 == vit.num_prefix_tokens
    found = tokenizer.features(photos[:2]).flatten(1, 2)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_convolutional_networks(name, photos, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    layer = len(model.feature_info) - 2
    width = model.feature_info[layer]["num_chs"]
    tokenizer = FeatureTokenizer.from_centroids(
        torch.zeros(1, width), name, weights=tmp_path / "w.pth", layer=layer, mean=MEAN, std=STD
    )
    large = F.interpolate(photos[:2].float(), size=64).byte()
    found = tokenizer.features(large)
    (wanted,) = model.forward_intermediates(
        normalised(large), indices=[layer], norm=True, intermediates_only=True
    )
    assert tokenizer.grid_size(64, 64) == found.shape[1:3] == wanted.shape[2:]
    torch.testing.assert_close(found.permute(0, 3, 1, 2), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ids_are_exact_for_the_features(network, photos, precision):
    for metric in ("euclidean", "cosine", "dot"):
        tokenizer = given(network, metric=metric, precision=precision)
        x = tokenizer.features(photos).flatten(1, 2).double()
        c = tokenizer.centroids.double()
        if metric == "euclidean":
            score = -torch.cdist(x, c, compute_mode="donot_use_mm_for_euclid_dist")
        elif metric == "cosine":
            score = F.normalize(x, dim=-1) @ F.normalize(c, dim=-1).T
        else:  # released: features normalised, centroids as they are
            score = F.normalize(x, dim=-1) @ c.T
        assert torch.equal(tokenizer(photos), score.argmax(-1))
    assert len({tuple(given(network, metric=m)(photos).flatten().tolist()) for m in
                ("euclidean", "cosine", "dot")}) == 3  # fmt: skip


def test_the_callers_autocast_changes_nothing(network, photos):
    for precision in ("float32", "bfloat16"):
        tokenizer = given(network, precision=precision)
        outside = tokenizer.features(photos)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(tokenizer.features(photos), outside)
    assert not torch.equal(given(network).features(photos), outside)


def test_no_gradient_reaches_the_network(network, photos):
    tokenizer = given(network)
    assert not tokenizer.features(photos.float() / 255).requires_grad
    assert not any(p.requires_grad for p in tokenizer.network.module.parameters())
    assert not any(m.training for m in tokenizer.network.module.modules())


@torch.no_grad()
def test_another_patch_size_resizes_for_the_network(network, vit, photos):
    tokenizer = given(network, patch_size=4)  # the network's stride is 8
    tokens = tokenizer(photos[:3, :, :16, :24])
    assert tokens.shape == (3, 4 * 6)
    larger = F.interpolate(
        photos[:3, :, :16, :24].float() / 255, (32, 48), mode="bicubic", antialias=True
    ).clamp(0, 1)
    wanted = given(network)(larger)
    assert torch.equal(tokens, wanted)


def test_refusals(network, photos, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = {key: value for key, value in network.items() if key != "model"}
    for call, message in [
        (lambda: given(network, layer=3), r"layer must lie in -3 .. 2, the layers of vit_tiny"),
        (lambda: given(network, metric="l1"), "metric must be one of 'euclidean', 'cosine', 'dot'"),
        (lambda: given(network, precision="half"), "precision must be one of"),
        (lambda: given(network, patch_size=0), "patch_size must be an int >= 1"),
        (lambda: given(network)(photos[:, :, :30]), "not a multiple of patch_size = 8"),
        (lambda: given(network)(photos, normalized=True), "uint8 pixels are never normalised"),
        (
            lambda: FeatureTokenizer.from_centroids(torch.zeros(2, 8), **network),
            r"shape \[K, 16\], the width of layer 2",
        ),
        (
            lambda: FeatureTokenizer.from_centroids(torch.zeros(2, 8), "vit_tinny", **name),
            r"model = 'vit_tinny' is not a timm model; did you mean .*vit_tiny",
        ),
        (
            lambda: given({**network, "model_options": {"widht": 3}}),
            "timm cannot make",
        ),
        (lambda: FeatureTokenizer.fit(photos, 0, **network), "num_clusters must be an int >= 1"),
        (lambda: FeatureTokenizer.fit(photos[:1], 17, **network), "16 patches, fewer than"),
        (
            lambda: FeatureTokenizer.fit(photos.float(), 3, **network),
            r"must lie in \[0, 1\] before normalisation",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"could not be fetched.*weights=FILE"):
        FeatureTokenizer.from_centroids(torch.zeros(2, 192), "vit_tiny_patch16_224")


def test_what_timm_cannot_do_is_said(network, photos, monkeypatch):
    """Some families norm no intermediate features, or make fewer than their stride says."""
    module = given(network).network.module

    def refuse(*_, **__):
        raise AssertionError("normalization of features not supported")

    monkeypatch.setattr(type(module), "forward_intermediates", refuse)
    with pytest.raises(ValueError, match=r"refuses images of 32 x 32.*apply_norm=True: normaliz"):
        given(network)(photos)
    fewer = [torch.zeros(60, 16, 3, 3)]
    monkeypatch.setattr(type(module), "forward_intermediates", lambda *_, **__: fewer)
    with pytest.raises(ValueError, match=r"makes \[16, 3, 3\] features.*expected \[16, 4, 4\]"):
        given(network)(photos)


def test_windows(tmp_path, photos):
    name, options = "swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 4}
    options |= {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}
    state = timm.create_model(name, num_classes=0, **options).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    tokenizer = FeatureTokenizer.from_centroids(
        torch.randn(2, 16), name, weights=tmp_path / "w.safetensors", model_options=options
    )
    assert tokenizer.patch_size == 8
    assert tokenizer(photos).shape == (60, 16)
    tokenizer.save(tmp_path / "t.safetensors")
    again = load_tokenizer(tmp_path / "t.safetensors")
    assert torch.equal(again(photos), tokenizer(photos))
    assert again.fingerprint() == tokenizer.fingerprint()


def test_tokenizers_of_one_network_share_its_features(network, photos, monkeypatch):
    several = [given(network), given(network, k=9), given(network, metric="cosine")]
    several += [given(network, layer=0), given(network, patch_size=4)]
    labels = torch.arange(60) % 3
    alone = [token_class_counts(t, [(photos, labels)]) for t in several]
    runs = []
    once = FeatureNetwork.features
    monkeypatch.setattr(FeatureNetwork, "features", lambda *a, **k: runs.append(1) or once(*a, **k))
    together = token_class_counts(several, [(photos, labels)])
    assert len(runs) == 3  # the layer, another layer, another size
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
