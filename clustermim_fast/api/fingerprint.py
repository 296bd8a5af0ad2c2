"""Content keys of image sets, for what is kept and used again."""

from __future__ import annotations

import hashlib

import numpy as np

from clustermim_fast.data import ImageSet

__all__ = ["images_fingerprint"]


def images_fingerprint(images: ImageSet) -> str:
    """Hash of the content of a set: all its pixels in memory, else 1,024 evenly spaced images."""
    digest = hashlib.sha256(f"{len(images)} {images.image_size} {images.eval_crop}".encode())
    count = len(images) if images.in_memory else min(len(images), 1024)
    for index in np.linspace(0, len(images) - 1, count).round().astype(np.int64):
        pixels = images.pixels(int(index))
        digest.update(repr(tuple(pixels.shape)).encode())
        digest.update(pixels.contiguous().numpy().data)
    if images.labels is not None:
        digest.update(np.ascontiguousarray(images.labels).tobytes())
    return digest.hexdigest()
