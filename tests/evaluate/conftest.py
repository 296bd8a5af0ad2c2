"""A subject to evaluate: two small ViTs on drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest


class Drawn:
    """Images in memory as evaluation wants them; counts how often they are asked for."""

    def __init__(self, pixels):
        self.pixels = pixels
        self.asked = 0

    def __len__(self):
        return len(self.pixels)

    def images(self, indices):
        self.asked += 1
        return self.pixels[indices]

    def crops(self, seed, epoch, indices, config):
        return self.pixels[indices]


@pytest.fixture
def subject():
    """subject(seed) -> Subject; shuffled_test_labels=True has the same images and other truths."""
    timm = pytest.importorskip("timm", reason="the extra [train] is not installed")
    import torch

    from clustermim_fast.evaluate import Labelled, Subject
    from tests.shapes import CLASSES, draw

    def make(seed, *, shuffled_test_labels=False):
        random = np.random.default_rng(seed)

        def split(count):
            labels = torch.arange(count) % len(CLASSES)
            pixels = np.stack([draw(CLASSES[label], random) for label in labels])
            return Drawn(torch.from_numpy(pixels).permute(0, 3, 1, 2)), labels

        encoders = {}
        for name in ("pretrained", "random_init"):
            torch.manual_seed(len(name))
            encoders[name] = timm.create_model(
                "vit_tiny_patch16_224",
                img_size=16,
                patch_size=4,
                embed_dim=32,
                depth=2,
                num_heads=2,
                num_classes=0,
            )
        train, train_labels = split(60)
        test, test_labels = split(30)
        if shuffled_test_labels:
            test_labels = test_labels.flip(0)
        return Subject(
            encoders,
            Labelled(train, train_labels, "train"),
            Labelled(test, test_labels, "test"),
            CLASSES,
            (0.5, 0.5, 0.5),
            (0.25, 0.25, 0.25),
            {"run": "drawn"},
        )

    return make
