"""A run small enough to repeat: 12-pixel noise, a network of a few thousand weights."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clustermim_fast.data import DataConfig
from clustermim_fast.models import ModelConfig
from clustermim_fast.optim import OptimConfig
from clustermim_fast.train import (
    EfficiencyConfig,
    LogConfig,
    TokenizerConfig,
    TrainConfig,
    config_from_overrides,
)

# What a method needs besides the settings that all share.
OF_METHOD = {
    "ccvit": {"model__encoder": "beit_base_patch16_224"},
    "a2mim": {"mask__unit": 6},
}


@pytest.fixture
def pictures(tmp_path):
    """40 images with a little structure, 16 x 16."""
    return make_pictures(tmp_path / "pictures")


def make_pictures(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(40):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((16, 16)).save(folder / f"{index:02d}.png")
    return folder


def make_config(out, pictures):
    """Of a run of 2 epochs of 5 steps."""
    return TrainConfig(
        out=str(out),
        data=DataConfig(path=str(pictures), image_size=(12, 12)),
        model=ModelConfig(
            patch_size=3, embed_dim=16, depth=1, num_heads=2, decoder_dim=16, decoder_depth=1
        ),
        tokenizer=TokenizerConfig(num_clusters=6, max_iter=2),
        optim=OptimConfig(epochs=2, batch_size=8, lr=1e-3),
        log=LogConfig(every_steps=2),
        efficiency=EfficiencyConfig(device="cpu"),
    )


@pytest.fixture(scope="module")
def base_config(tmp_path_factory):
    """For runs that the tests of a module share."""
    return make_config("", make_pictures(tmp_path_factory.mktemp("shared") / "pictures"))


@pytest.fixture
def tiny(tmp_path, pictures):
    """`tiny(**overrides)`: the config of a run of 2 epochs of 5 steps."""
    base = make_config(tmp_path / "run", pictures)

    def make(**overrides):
        options = {**OF_METHOD.get(overrides.get("method", ""), {}), **overrides}
        return config_from_overrides(
            base, {key.replace("__", "."): value for key, value in options.items()}
        )

    return make
