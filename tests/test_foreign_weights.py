"""Checkpoints in other codebases' shapes, made here from timm's networks by renaming."""

from __future__ import annotations

import argparse

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import timm
import torch
from safetensors.torch import save_file

from clustermim_fast import api, cli
from clustermim_fast.api.sources import open_source
from tests.shapes import draw_folder

VIT, BEIT = "vit_tiny_patch16_224", "beit_base_patch16_224"
OPTIONS = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
QUIET = {"say": lambda line: None}


def trained(name=VIT, **options):
    """A network whose weights nothing but its own file has."""
    made = timm.create_model(name, num_classes=0, **OPTIONS, **options).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.2)
    return made


def mae(vit):
    """facebookresearch/mae: {"model": encoder, mask_token and decoder_*, "optimizer", ...}."""
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        "decoder_embed.weight": torch.zeros(8, 16),
        "decoder_blocks.0.attn.qkv.weight": torch.zeros(24, 8),
        "decoder_norm.weight": torch.zeros(8),
        "decoder_pred.weight": torch.zeros(48, 8),
    }
    return {"model": vit.state_dict() | decoder, "epoch": 799, "scaler": {}}


def dino(vit):
    """facebookresearch/dino: student under DDP, teacher with backbone. and a projection head."""
    head = {"head.mlp.0.weight": torch.zeros(4, 16), "head.last_layer.weight_g": torch.zeros(4, 1)}
    teacher = {f"backbone.{key}": value for key, value in vit.state_dict().items()} | head
    student = {f"module.{key}": torch.zeros_like(value) for key, value in teacher.items()}
    return {"student": student, "teacher": teacher, "epoch": 100}


def moco(vit):
    """facebookresearch/moco-v3: {"state_dict": module.base_encoder.* and momentum_encoder.*}."""
    state = vit.state_dict()
    return {
        "state_dict": {f"module.base_encoder.{key}": value for key, value in state.items()}
        | {f"module.momentum_encoder.{key}": torch.zeros_like(v) for key, v in state.items()}
    }


def beit(made):
    """microsoft/unilm's beit, pretrained: relative_position_index buffers, lm_head, mask_token."""
    more = {"lm_head.weight": torch.zeros(8, 16), "mask_token": torch.zeros(1, 1, 16)}
    more["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    return {"model": made.state_dict() | more}


def features(encoder):
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).sin().view(2, 3, 16, 16)
    with torch.no_grad():
        return encoder.forward_features(images)


SHARED = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"}
OWN = {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False, "global_pool": "token"}


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        (VIT, {}, mae),
        (VIT, {}, dino),
        (VIT, {}, moco),
        (BEIT, SHARED, beit),
        (BEIT, OWN, beit),
        ("eva02_tiny_patch14_224", {}, lambda made: made.state_dict()),
    ],
)
def test_features_are_those_of_the_network(name, options, shape, tmp_path):
    made = trained(name, **options)
    torch.save(shape(made), tmp_path / "w.pth")
    source = open_source(name, weights=tmp_path / "w.pth", model_options=OPTIONS)
    torch.testing.assert_close(
        features(source.encoders["pretrained"]), features(made), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(features(source.encoders["random_init"]), features(made), atol=0.1)
    assert source.image_size == (16, 16)
    assert source.about["loaded"].endswith("complete")


def test_a_network_with_mean_pooling_keeps_its_norm(tmp_path):
    """timm's beits norm after pooling by default, checkpoints before: theirs holds."""
    made = trained(BEIT, **SHARED)
    torch.save(beit(made), tmp_path / "w.pth")
    encoder = open_source(BEIT, weights=tmp_path / "w.pth", model_options=OPTIONS).encoders
    assert isinstance(encoder["pretrained"].norm, torch.nn.LayerNorm)


def test_a_resnet(tmp_path):
    made = timm.create_model("resnet10t", num_classes=0).eval()
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    encoder = open_source("resnet10t", weights=tmp_path / "w.safetensors").encoders["pretrained"]
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder.forward_features(x), made.forward_features(x))


def test_what_does_not_fit_says_what_is_missing(tmp_path):
    file = tmp_path / "w.pth"

    def refused(state, message, name=VIT):
        torch.save(state, file)
        with pytest.raises(ValueError, match=message):
            open_source(name, weights=file, model_options=OPTIONS)

    state = mae(trained())
    del state["model"]["blocks.1.mlp.fc2.bias"]
    refused(state, r"1 missing \(blocks\.1\.mlp\.fc2\.bias\)")
    wide = timm.create_model(VIT, num_classes=0, **(OPTIONS | {"embed_dim": 32}))
    refused(wide.state_dict(), r"does not fit")
    refused(mae(trained()), "missing", BEIT)
    refused({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace()}, "never unpickled")
    torch.save(mae(trained()), file)
    with pytest.raises(ValueError, match="not a timm model; did you mean"):
        open_source("vit_tiny_patch16_2244", weights=file)
    with pytest.raises(ValueError, match="weights of its own"):
        open_source(tmp_path, weights=file)


def test_knn_of_a_checkpoint(tmp_path):
    """kNN runs on it, and is that of the same features through timm."""
    shapes = draw_folder(tmp_path / "shapes", 15)
    torch.save(dino(trained()), tmp_path / "w.pth")
    result = api.evaluate_run(
        "knn",
        VIT,
        data=str(shapes),
        weights=tmp_path / "w.pth",
        model_options=OPTIONS,
        k=3,
        **QUIET,
    )
    assert [row["name"] for row in result["rows"]] == ["pretrained", "random_init", "raw_pixels"]
    assert result["rows"][0]["dim"] == 16
    assert result["weights"] == str(tmp_path / "w.pth")


def test_model_stands_for_run(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(api, "evaluate_run", lambda *args, **more: calls.append((args, more)))
    assert cli.main(["evaluate", "knn", "weights=w.pth", f"model={VIT}", "k=3"]) == 0
    assert calls[0][0] == ("knn", VIT)
    assert {key: calls[0][1][key] for key in ("weights", "k")} == {"weights": "w.pth", "k": 3}
    assert cli.main(["evaluate", "knn", "weights=w.pth", "k=3"]) == 1
    assert "expected RUN or model=NAME" in capsys.readouterr().err
