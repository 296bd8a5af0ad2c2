"""What several of these tests start from: digits, photos, a small network's weights in a file."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's handwritten digits as uint8 [400, 3, 16, 16]."""
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().images[:400]).float()[:, None] / 16
    x = F.interpolate(x, size=16, mode="bilinear").expand(-1, 3, -1, -1)
    return (x * 255).round().byte().contiguous()


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
