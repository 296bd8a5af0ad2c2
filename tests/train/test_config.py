"""Overrides, aliases, errors that name near misses, and the trip through JSON."""

from __future__ import annotations

import json

import pytest

from clustermim_fast import recipes
from clustermim_fast.train import (
    TrainConfig,
    config_from_overrides,
    from_dict,
    list_keys,
    load_config,
    save_config,
    to_dict,
)


def test_text_is_read_by_the_fields_type():
    config = config_from_overrides(
        TrainConfig(),
        {
            "data": "somewhere", "epochs": "12", "optim.lr": "3e-4", "img_size": "32x48",
            "data.flip": "no", "optim.betas": "0.9,0.99", "model.weights": "", "seed": "7",
            "model.class_token": "false", "data.mean": "0.1,0.2,0.3", "data.std": "(1, 1, 1)",
            "norm_pix_loss": "1", "model": "vit_base_patch16_224", "optim.warmup_epochs": "none",
        },
    )  # fmt: skip
    assert config.data.path == "somewhere"
    assert config.optim.epochs == 12
    assert config.optim.lr == 3e-4
    assert config.data.image_size == (32, 48)
    assert config.data.flip is False
    assert config.optim.betas == (0.9, 0.99)
    assert config.model.class_token is False
    assert config.model.encoder == "vit_base_patch16_224"
    assert config.data.mean == (0.1, 0.2, 0.3)
    assert config.loss.norm_pix_loss is True
    assert config.optim.warmup_epochs is None
    assert config.seed == 7


@pytest.mark.parametrize("name", ["watch", "eval_every"])
@pytest.mark.parametrize(("given", "epochs"), [("true", 1), (True, 1), ("no", 0), ("3", 3), (3, 3)])
def test_an_interval_may_be_yes_or_no(name, given, epochs):
    """Yes: every epoch."""
    assert getattr(config_from_overrides(TrainConfig(), {name: given}).log, name) == epochs


def test_values_that_are_not_text():
    config = config_from_overrides(
        TrainConfig(), {"img_size": 32, "optim.lr": 1, "data.crop_scale": [0.5, 1], "epochs": 3.0}
    )
    assert config.data.image_size == (32, 32)
    assert config.optim.lr == 1.0
    assert config.data.crop_scale == (0.5, 1.0)
    assert config.optim.epochs == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean epochs"),
        ({"optim.lrr": 3}, "did you mean.*optim.lr"),
        ({"learning_rate": 3}, "unknown setting 'learning_rate'"),
        ({"optim.mask_ratio": 3}, "unknown setting.*mask_ratio"),
        ({"maskratio": 0.5}, "did you mean mask_ratio"),
        ({"optim": 3}, "optim is a group of settings: optim.epochs"),
        ({"epochs": "many"}, "optim.epochs: expected int, got 'many'"),
        ({"epochs": "1.5"}, "optim.epochs: expected int"),
        ({"epochs": None}, "optim.epochs: expected int, got None"),
        ({"data.flip": "perhaps"}, "data.flip: expected bool"),
        ({"img_size": "1x2x3"}, "data.image_size: expected"),
        ({"optim.betas": "0.9"}, "optim.betas: expected"),
        ({"method": "simmim"}, "method must be one of a2mim, ccvit, clustermim, mae"),
        ({"mask_ratio": 1}, "mask.ratio must be between 0 and 1"),
        ({"mask.kind": "blocks"}, "mask.kind must be one of"),
        ({"epochs": 0}, "optim.epochs must be at least 1"),
        ({"warmup_epochs": 500}, "optim.warmup_epochs must be at least 0 and below"),
        ({"resume": "maybe"}, 'resume must be "auto"'),
        ({"data.crop_scale": "0,1"}, "data.crop_scale must be a range"),
        ({"data.mean": "1,1,1"}, "data.mean and data.std must be given together"),
        ({"efficiency.amp": "fp8"}, "efficiency.amp must be"),
        ({"efficiency.sharding": "zero3"}, "efficiency.sharding must be"),
        (
            {"efficiency.sharding": "fsdp", "efficiency.compile": "max-autotune"},
            "compile=off or default, got max-autotune",
        ),
        ({"optim.ema_decay": 1}, "optim.ema_decay"),
        ({"data.normalize": "cifar"}, "data.normalize must be"),
        ({"data.mean": "0,0,0", "data.std": "0,1,1"}, "data.std must be above 0"),
        ({"img_size": 0}, "data.image_size must be positive"),
        ({"data.eval_crop": 0}, r"data.eval_crop must be in \(0, 1\]"),
        ({"data.eval_crop": 2}, r"data.eval_crop must be in \(0, 1\]"),
        ({"lr": -1}, "optim.lr must be above 0"),
        ({"lr": 1e-4, "optim.min_lr": 1e-3}, "optim.min_lr must be at most the .* 0.0001, got"),
        ({"blr": 1e-3, "batch_size": 64, "optim.min_lr": 3e-4}, "at most the peak .* 0.00025, got"),
        ({"seed": 2**70}, r"seed must be at least 0 and below 2\*\*32, got 1180591620717411303424"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"steps": 0}, "optim.steps must be at least 1"),
        ({"max_steps": 9}, "unknown setting 'max_steps'; did you mean .*steps"),
        ({"blr": "nan"}, "optim.blr must be above 0"),
        ({"optim.clip_grad": -1}, "optim.clip_grad must be at least 0"),
        ({"optim.betas": "2,3"}, "optim.betas must be in"),
        ({"num_clusters": 0}, "tokenizer.num_clusters must be at least 1"),
        ({"tokenizer.max_iter": 0}, "tokenizer.max_iter must be at least 1"),
        ({"tokenizer.algorithm": "elkan"}, "tokenizer.algorithm must be"),
        ({"log.every_steps": 0}, "log.every_steps must be at least 1"),
        ({"log.checkpoint_every_epochs": 0}, "log.checkpoint_every_epochs must be at least 1"),
        ({"log.keep": -1}, "log.keep must be at least 0"),
        ({"workers": -1}, "efficiency.workers must be at least 0"),
        ({"tokenizer.images_per_class": 0}, "tokenizer.images_per_class must be at least 1"),
        ({"tokenizer.batch_size": 0}, "tokenizer.batch_size must be at least 1"),
    ],
)
def test_errors(overrides, message):
    with pytest.raises(ValueError, match=message):
        config_from_overrides(TrainConfig(), overrides)


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_round_trip(name, tmp_path):
    config = recipes.get_recipe(name)
    assert from_dict(to_dict(config)) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


def test_every_key_can_be_set_to_what_it_is():
    config = recipes.get_recipe("cifar10_vit_tiny")
    for key in list_keys():
        path = {"data": "data.path", "model": "model.encoder", "tokenizer": "tokenizer.path"}
        if key in path or "." in key:
            owner, name = path.get(key, key).split(".")
            value = getattr(getattr(config, owner), name)
            assert config_from_overrides(config, {key: value}) == config, key


def test_load_refuses(tmp_path):
    with pytest.raises(ValueError, match="is this a run folder"):
        load_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_config(tmp_path / "config.json")


def test_recipes():
    assert {"cifar10_vit_tiny", "digits_demo", "clustermim_vit_small_imagenet100"} <= set(
        recipes.list_recipes()
    )
    with pytest.raises(ValueError, match="recipe must be one of"):
        recipes.get_recipe("vit_huge")
    config, said = recipes.auto_recipe("digits")
    assert config == recipes.get_recipe("digits_demo")
    assert "digits_demo" in said


def test_auto_recipe_looks_at_the_images(tmp_path):
    from PIL import Image

    for size, side in (((40, 30), 32), ((64, 70), 64), ((500, 375), None)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        config, said = recipes.auto_recipe(str(tmp_path))
        assert f"{size[0]} x {size[1]} px" in said
        height, width = config.data.image_size
        assert side is None or height == width == side
        assert height % config.model.patch_size == 0
