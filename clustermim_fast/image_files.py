"""Which files of a folder are images. Imports nothing heavy: `clustermim pretrain` asks first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
)


def image_files(root: Path) -> Iterator[Path]:
    """Every image below ``root`` by its name's ending, links followed; ValueError for none."""
    seen: set[str] = set()
    found = False
    for folder, sub_folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a parent
            sub_folders.clear()
            continue
        seen.add(real)
        for name in files:
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                found = True
                yield Path(folder) / name
    if not found:
        looked_for = ", ".join(sorted(EXTENSIONS))
        raise ValueError(
            f"data: no images below {root} (looked for {looked_for}, recursively); "
            "give a folder that holds some"
        )


def require_folder(path: str | Path) -> Path:
    """``path`` as an existing folder."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f'data: expected a folder of images or the name "digits", got {str(path)!r}, '
            "which is not an existing folder"
        )
    return root


def require_images(path: str | Path) -> None:
    """ValueError unless ``path`` is "digits" or a folder with an image somewhere below it."""
    if str(path) != "digits":
        next(image_files(require_folder(path)))
