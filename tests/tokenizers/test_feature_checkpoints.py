"""FeatureTokenizer: weights of other codebases and sizes, in timm's folders; its own files."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import timm
from safetensors.torch import load_file, save_file

from clustermim_fast.tokenizers import FeatureTokenizer, Tokenizer, load_tokenizer
from tests.tokenizers.feature_networks import (
    MEAN,
    NAME,
    OPTIONS,
    STD,
    given,
    normalised,
    random_vit,
)


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
    # As timm's own save_for_hf writes it.
    config["model_args"] = {**OPTIONS, "num_classes": 0, "in_chans": 3, "global_pool": "token"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = FeatureTokenizer.from_centroids(torch.zeros(1, 16), str(folder))
    assert torch.equal(tokenizer.features(photos), wanted)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no architecture"):
        FeatureTokenizer.from_centroids(torch.zeros(1, 16), str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="a run folder with export/"):
        FeatureTokenizer.from_centroids(torch.zeros(1, 16), str(tmp_path))


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
