"""FeatureTokenizer: features against hooks on timm, ids, fits by streaming, checkpoints, files."""

from __future__ import annotations

import argparse
import gc
import json

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import timm
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

from clustermim_fast import KMeans
from clustermim_fast.tokenizers import (
    FeatureTokenizer,
    Tokenizer,
    feature_fit,
    load_tokenizer,
    token_class_counts,
)
from clustermim_fast.tokenizers.feature_network import FeatureNetwork

NAME = "vit_tiny_patch16_224"
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_vit(name=NAME, **changes):
    torch.manual_seed(1)
    vit = timm.create_model(name, num_classes=0, **{**OPTIONS, **changes})
    for parameter in vit.parameters():  # LayerScale, norms and biases too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return vit.eval()


@pytest.fixture(scope="module")
def vit():
    return random_vit()


@pytest.fixture(scope="module")
def network(vit, tmp_path_factory):
    """Keyword arguments of a tokenizer whose network has the weights of ``vit``."""
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(vit.state_dict(), path)
    return {"model": NAME, "weights": path, "model_options": OPTIONS, "mean": MEAN, "std": STD}


@pytest.fixture(scope="module")
def photos():
    generator = torch.Generator().manual_seed(2)
    small = torch.randint(0, 256, (60, 3, 8, 8), generator=generator).float()
    return F.interpolate(small, size=32, mode="bilinear").byte()


def normalised(images):
    x = images.float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def given(network, k=7, **options):
    generator = torch.Generator().manual_seed(3)
    return FeatureTokenizer.from_centroids(
        torch.randn(k, 16, generator=generator), **network, **options
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


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd", "clustermim"])
def test_fit(network, photos, metric, algorithm):
    tokenizer = FeatureTokenizer.fit(
        photos, 6, **network, metric=metric, algorithm=algorithm, max_iter=4, batch_size=16
    )
    x = tokenizer.features(photos).flatten(0, 2).double()
    c = tokenizer.centroids.double()
    report = tokenizer.report
    if metric == "cosine":
        x = F.normalize(x, dim=1)
        cost = 1 - x @ F.normalize(c, dim=1).T
        torch.testing.assert_close(c.norm(dim=1), torch.ones(6).double())
    else:
        cost = torch.cdist(x, c, compute_mode="donot_use_mm_for_euclid_dist").square()
    best, ids = cost.min(1)
    assert report.inertia == pytest.approx(float(best.sum()), rel=1e-4)
    assert report.exact
    assert report.counts == ids.bincount(minlength=6).tolist()
    assert report.num_rows == 60 * 16
    if metric != "dot":
        assert torch.equal(tokenizer(photos).flatten(), ids)
    # As good as k-means on the matrix that was never made.
    free = KMeans(6, n_init=3, random_state=0, metric=report.metric).fit(x.float())
    assert report.inertia < 1.25 * free.inertia_
    # The pictures are the nearest patches.
    patches = photos.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    for k in range(6):
        mine = torch.where(ids == k, best, torch.inf)
        assert torch.equal(tokenizer.pictures[k], patches[mine.argmin()])
    decoded = tokenizer.decode(ids.view(60, 16))
    assert torch.equal((decoded[0, :, :8, :8] * 255).round().byte(), tokenizer.pictures[ids[0]])


def test_loaders_and_floats(network, photos):
    loader = DataLoader(TensorDataset(photos, torch.arange(60)), batch_size=16, shuffle=True)
    options = {"algorithm": "lloyd", "max_iter": 3, **network}
    a = FeatureTokenizer.fit(loader, 5, **options)
    b = FeatureTokenizer.fit([photos[:30].float() / 255, photos[30:].float() / 255], 5, **options)
    assert a.report.inertia == pytest.approx(b.report.inertia, rel=0.2)
    assert b.pictures.dtype == torch.uint8
    assert (b.pictures[:, None] == photos.unfold(2, 8, 8).unfold(3, 8, 8).permute(
        0, 2, 3, 1, 4, 5).flatten(0, 2)[None]).flatten(2).all(2).any(1).all()  # fmt: skip


def test_features_are_not_held(network, photos, monkeypatch):
    """No more than two batches of rows are alive at any time, and every pass is a new one."""
    alive, most, forwards = [], 0, 0

    class Watched(feature_fit.FeatureRows):
        def __init__(self, *arguments):
            nonlocal most, forwards
            super().__init__(*arguments)
            gc.collect()
            forwards += 1
            alive.append(1)
            most = max(most, len(alive))

        def __del__(self):
            alive.pop()

    monkeypatch.setattr(feature_fit, "FeatureRows", Watched)
    options = {"max_iter": 3, "batch_size": 10, **network}
    streamed = FeatureTokenizer.fit(photos, 5, **options)
    assert most <= 2
    assert forwards == 6 * (1 + 3 + 1)  # sample, passes, look
    forwards = 0
    kept = FeatureTokenizer.fit(photos, 5, **options, keep_features=True)
    assert most >= 6
    assert forwards == 6 * 2
    assert kept.report.inertia == pytest.approx(streamed.report.inertia, rel=0.2)


def checkpoint(vit, style):
    """The state of ``vit`` as that codebase writes it."""
    state = vit.state_dict()
    if style == "dino":
        backbone = {f"module.backbone.{name}": value for name, value in state.items()}
        head = {"module.head.mlp.0.weight": torch.zeros(2, 16)}
        return {"student": {}, "teacher": {**backbone, **head}, "epoch": 800}
    if style == "deit":
        return {"model": {**state, "head.weight": torch.zeros(10, 16), "head.bias": torch.ones(10)}}
    if style == "mae":
        decoder = {"decoder_embed.weight": torch.zeros(4, 16), "mask_token": torch.zeros(1, 1, 4)}
        return {"model": {**state, **decoder}}
    if style == "dinov2":
        return {**state, "mask_token": torch.zeros(1, 16)}
    return state


@pytest.mark.parametrize("style", ["plain", "dino", "deit", "mae", "dinov2"])
def test_checkpoints_of_other_codebases(network, vit, photos, tmp_path, style):
    torch.save(checkpoint(vit, style), tmp_path / "w.pth")
    tokenizer = given({**network, "weights": tmp_path / "w.pth"})
    assert torch.equal(tokenizer.features(photos), given(network).features(photos))
    assert "complete" in tokenizer.network.about


def test_beits_checkpoints(photos, tmp_path):
    """Relative positions shared by all blocks, q and v biases, the pretraining head beside them."""
    name = "beit_base_patch16_224"
    options = {**OPTIONS, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    torch.manual_seed(0)
    beit = timm.create_model(name, num_classes=0, **options).eval()
    head = {"lm_head.weight": torch.zeros(8, 16), "mask_token": torch.zeros(1, 1, 16)}
    torch.save({"model": {**beit.state_dict(), **head}}, tmp_path / "w.pth")
    tokenizer = FeatureTokenizer.from_centroids(
        torch.zeros(1, 16), name, weights=tmp_path / "w.pth", model_options=options, mean=MEAN,
        std=STD, apply_norm=False,
    )  # fmt: skip
    (wanted,) = beit.forward_intermediates(
        normalised(photos), indices=[2], norm=False, intermediates_only=True
    )
    found = tokenizer.features(photos).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, wanted.detach(), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_another_size_is_resampled(network, photos, tmp_path):
    """timm's filter: the position embedding of 64-pixel images to that of 32-pixel ones."""
    larger = random_vit(img_size=64)
    torch.save(larger.state_dict(), tmp_path / "w.pth")
    tokenizer = given({**network, "weights": tmp_path / "w.pth"})
    assert tokenizer.features(photos).shape == (60, 4, 4, 16)
    grid = larger.pos_embed[:, 1:].view(1, 8, 8, 16).permute(0, 3, 1, 2)
    small = F.interpolate(grid, 4, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    found = tokenizer.network.module.pos_embed[:, 1:]
    torch.testing.assert_close(found, small.reshape(1, 16, 16).detach(), atol=1e-5, rtol=1e-5)


def test_checkpoints_that_do_not_fit(network, vit, tmp_path):
    path = tmp_path / "w.pth"
    bad = {**network, "weights": path}

    def refused(state, message):
        torch.save(state, path)
        with pytest.raises(ValueError, match=message):
            given(bad)

    whole = vit.state_dict()
    cut = {name: value for name, value in whole.items() if not name.startswith("norm.")}
    refused(cut, r"does not fill the model: .*2 missing \(norm.bias, norm.weight\)")
    given(bad, apply_norm=False)  # which needs no norm
    cut = {name: value for name, value in whole.items() if not name.startswith("blocks.2.")}
    refused(cut, r"missing \(blocks.2.attn")
    given(bad, layer=1)
    refused({**whole, "blocks.0.mlp.fc1.bias": torch.zeros(5)}, r"fc1.bias: file \[5\], model")
    refused({"model": whole, "args": argparse.Namespace()}, "never unpickled")
    refused({"conv1.weight": torch.zeros(1)}, "no tensor name in common")
    with pytest.raises(ValueError, match="no such file"):
        given({**network, "weights": tmp_path / "none.pth"})


def test_saved_and_loaded(network, photos, tmp_path):
    path = tmp_path / "tok.safetensors"
    tokenizer = FeatureTokenizer.fit(photos, 5, **network, layer=1, max_iter=2, metric="cosine")
    tokenizer.save(path)
    again = load_tokenizer(path)
    assert isinstance(again, FeatureTokenizer)
    assert isinstance(again, Tokenizer)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.describe() == tokenizer.describe()
    assert again.report == tokenizer.report
    assert torch.equal(again.pictures, tokenizer.pictures)
    assert torch.equal(again(photos), tokenizer(photos))
    names = load_file(path).keys()
    assert "network.blocks.1.attn.qkv.weight" in names
    assert not any(name.startswith("network.blocks.2.") for name in names)  # not needed
    bare = given(network)
    bare.save(path)
    assert load_tokenizer(path).pictures is None


def test_fingerprint_covers_what_changes_ids(network, tmp_path):
    save_file(random_vit(qkv_bias=False).state_dict(), tmp_path / "other.safetensors")
    moved = random_vit()
    moved.blocks[0].mlp.fc1.bias.data += 1e-3
    save_file(moved.state_dict(), tmp_path / "moved.safetensors")
    tokenizers = [
        given(network),
        given(network, layer=1),
        given(network, apply_norm=False),
        given(network, metric="cosine"),
        given(network, metric="dot"),
        given(network, patch_size=4),
        given(network, precision="bfloat16"),
        given({**network, "mean": (0.5, 0.5, 0.5)}),
        given({**network, "weights": tmp_path / "moved.safetensors"}),
        given(network, k=8),
    ]
    assert len({t.fingerprint() for t in tokenizers}) == len(tokenizers)
    assert given(network, layer=2).fingerprint() == tokenizers[0].fingerprint()


def test_a_folder_of_timms(network, vit, photos, tmp_path):
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    save_file(vit.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": NAME,
        "model_args": OPTIONS,
        "pretrained_cfg": {"mean": MEAN, "std": STD},
    }
    (folder / "config.json").write_text(json.dumps(config))
    wanted = given(network).features(photos)
    for model in (folder, tmp_path / "run", f"local-dir:{folder}"):
        tokenizer = FeatureTokenizer.from_centroids(torch.zeros(1, 16), str(model))
        assert torch.equal(tokenizer.features(photos), wanted)
        assert tokenizer.mean == MEAN
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no architecture"):
        FeatureTokenizer.from_centroids(torch.zeros(1, 16), str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="a run folder with export/"):
        FeatureTokenizer.from_centroids(torch.zeros(1, 16), str(tmp_path))


def test_given_centroids_have_pictures_after_a_look(network, photos):
    tokenizer = given(network)
    with pytest.raises(ValueError, match=r"look_at\(images\)"):
        tokenizer.decode(tokenizer(photos))
    seen = tokenizer.look_at(photos)
    assert int(seen.counts.sum()) == 60 * 16
    unused = (seen.counts == 0).nonzero().flatten()
    assert (tokenizer.pictures[unused] == feature_fit.GREY).all()
    assert tokenizer.decode(tokenizer(photos)).shape == (60, 3, 32, 32)


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
