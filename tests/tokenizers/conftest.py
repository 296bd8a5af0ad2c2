"""A small network's weights in a file and images for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="module")
def vit():
    from tests.tokenizers.feature_networks import random_vit

    return random_vit()


@pytest.fixture(scope="module")
def network(vit, tmp_path_factory):
    """Keyword arguments of a tokenizer whose network has the weights of ``vit``."""
    from safetensors.torch import save_file

    from tests.tokenizers.feature_networks import MEAN, NAME, OPTIONS, STD

    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(vit.state_dict(), path)
    return {"model": NAME, "weights": path, "model_options": OPTIONS, "mean": MEAN, "std": STD}


@pytest.fixture(scope="module")
def photos():
    generator = torch.Generator().manual_seed(2)
    small = torch.randint(0, 256, (60, 3, 8, 8), generator=generator).float()
    return F.interpolate(small, size=32, mode="bilinear").byte()
