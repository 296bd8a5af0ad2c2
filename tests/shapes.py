"""Small labelled images that tests draw themselves: coloured discs, squares and crosses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cross", "disc", "square")


def draw(kind: str, random: np.random.Generator, side: int = 16) -> np.ndarray:
    """One shape of random place and colour on a dark noisy ground, uint8 [side, side, 3]."""
    image = random.integers(0, 60, (side, side, 3))
    rows, columns = np.mgrid[:side, :side]
    y, x = rows - random.uniform(6, side - 6), columns - random.uniform(6, side - 6)
    inside = {
        "cross": (abs(y) < 1.2) | (abs(x) < 1.2),
        "disc": y**2 + x**2 < 16,
        "square": np.maximum(abs(y), abs(x)) < 4,
    }[kind]
    image[inside] = random.integers(120, 256, 3)
    return image.astype(np.uint8)


def draw_folder(root: Path, per_class: int, *, side: int = 16, seed: int = 0) -> Path:
    """root/<class>/<number>.png for each class; returns root."""
    random = np.random.default_rng(seed)
    for kind in CLASSES:
        (root / kind).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(draw(kind, random, side)).save(root / kind / f"{number:03d}.png")
    return root


TINY = {
    "img_size": "16",
    "patch_size": "4",
    "num_clusters": "8",
    "epochs": "2",
    "batch_size": "16",
    "model.embed_dim": "32",
    "model.depth": "2",
    "model.num_heads": "2",
    "model.decoder_dim": "16",
    "model.decoder_depth": "1",
    "model.decoder_heads": "1",
    "workers": "0",
}
"""Settings of a run that takes a second."""
