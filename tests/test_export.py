"""An exported encoder comes back from timm with the same features, bit for bit."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("safetensors", reason="the extra [train] is not installed")

import timm
import torch

from clustermim_fast.export import encoder_arguments, export_timm

SMALL = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def small_vit(**options: object) -> torch.nn.Module:
    torch.manual_seed(3)
    options = {**SMALL, "num_classes": 0, "fc_norm": False, **options}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    for parameter in model.parameters():  # zeros and ones would hide a tensor that was not loaded
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": True},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": True, "reg_tokens": 4},
        {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
    ],
    ids=["cls", "no-cls", "cls-and-registers", "registers-only"],
)
def test_round_trip_is_bit_equal(tmp_path, options):
    model = small_vit(**options)
    out = export_timm(model, tmp_path / "export", mean=MEAN, std=STD)
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(3, 3, 16, 24)
    assert torch.equal(model.eval().forward_features(images), again.forward_features(images))
    assert torch.equal(model(images), again(images))
    assert again.num_classes == 0


def test_preprocessing_is_the_runs(tmp_path):
    out = export_timm(small_vit(), tmp_path, mean=MEAN, std=STD)
    again = timm.create_model(f"local-dir:{out}", pretrained=True)
    data = timm.data.resolve_model_data_config(again)
    assert tuple(data["mean"]) == MEAN
    assert tuple(data["std"]) == STD
    assert tuple(data["input_size"]) == (3, 16, 24)
    assert data["crop_pct"] == 1.0


def test_a_head_can_be_put_on(tmp_path):
    out = export_timm(small_vit(), tmp_path, mean=MEAN, std=STD)
    again = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=7)
    assert again(torch.zeros(1, 3, 16, 24)).shape == (1, 7)


def test_training_mode_and_tokenizer_are_kept(tmp_path):
    model = small_vit()
    model.train()
    model.blocks[0].eval()
    tokenizer = tmp_path / "tokenizer.safetensors"
    tokenizer.write_bytes(b"codebook")
    out = export_timm(model, tmp_path / "export", mean=MEAN, std=STD, tokenizer_file=tokenizer)
    assert (out / "tokenizer" / "tokenizer.safetensors").read_bytes() == b"codebook"
    assert model.training
    assert not model.blocks[0].training
    config = json.loads((out / "config.json").read_text())
    assert config["model_args"] == encoder_arguments(model)


def test_an_encoder_without_a_name(tmp_path):
    model = timm.models.vision_transformer.VisionTransformer(
        **SMALL, num_classes=0, qkv_bias=True, class_token=False, global_pool="avg", fc_norm=False
    )
    out = export_timm(model, tmp_path / "export", mean=MEAN, std=STD)
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(model.eval().forward_features(images), again.forward_features(images))


def test_arguments_that_cannot_be_read_off_are_kept(tmp_path):
    if not hasattr(small_vit(), "_model_args"):
        pytest.skip("this timm does not keep the arguments of create_model")
    model = small_vit(mlp_ratio=2.0, init_values=0.1, dynamic_img_size=True)
    out = export_timm(model, tmp_path / "export", mean=MEAN, std=STD)
    arguments = json.loads((out / "config.json").read_text())["model_args"]
    assert (arguments["mlp_ratio"], arguments["init_values"]) == (2.0, 0.1)
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    larger = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.eval()(larger), again(larger))


def test_refuses_a_classifier(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=10)
    with pytest.raises(ValueError, match="num_classes=0, got num_classes=10"):
        export_timm(model, tmp_path, mean=MEAN, std=STD)


def test_refuses_what_would_not_come_back(tmp_path):
    model = small_vit(depth=3)
    arguments = {**encoder_arguments(model), "depth": 2}
    with pytest.raises(ValueError, match="do not make this encoder again"):
        export_timm(model, tmp_path, mean=MEAN, std=STD, model_args=arguments)
    heads = {**encoder_arguments(model), "num_heads": 4}
    with pytest.raises(ValueError, match="features differ"):
        export_timm(model, tmp_path, mean=MEAN, std=STD, model_args=heads)
