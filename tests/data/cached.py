"""What the tests of caches share."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clustermim_fast.data.cache import Settings, build_cache, open_sources


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(root, count=40, classes=("cat", "dog")):
    """`count` small images of several sizes in class folders, one of them broken."""
    for index in range(count):
        folder = root / classes[index % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        height, width = 12 + index % 5, 10 + index % 7
        picture = Image.fromarray(noise(height, width, 3, seed=index))
        picture.save(folder / f"{index:03d}.{'jpg' if index % 3 else 'png'}")
    (root / classes[0] / "006.png").write_text("no picture")
    return root


def build(data, out, *, size=0, threads=1, decoder="pillow", split=""):
    source = open_sources(data)[split]
    settings = Settings(str(data), split, size, decoder)
    return build_cache(source, out, settings, threads=threads, progress=False)[0]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
