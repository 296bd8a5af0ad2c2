"""Small frozen networks for the feature tokenizer's tests, and tokenizers on them."""

from __future__ import annotations

import timm
import torch

from clustermim_fast.tokenizers import FeatureTokenizer

NAME = "vit_tiny_patch16_224"
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_vit(name=NAME, **changes):
    torch.manual_seed(1)
    vit = timm.create_model(name, num_classes=0, **{**OPTIONS, **changes})
    for parameter in vit.parameters():  # LayerScale, norms and biases too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return vit.eval()


def normalised(images):
    x = images.float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def given(network, k=7, **options):
    generator = torch.Generator().manual_seed(3)
    return FeatureTokenizer.from_centroids(
        torch.randn(k, 16, generator=generator), **network, **options
    )
