"""What a path holds: images or a cache, and what decodes them. Imports nothing heavy: `clustermim
pretrain` asks first.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
)
# Fastest first; for plain JPEG files all give the same pixels as Pillow (docs/data.md).
JPEG_DECODERS = ("simplejpeg", "torchcodec", "pillow")
TEST_NAMES = ("test", "val", "valid", "validation")
CACHE_INDEX = "cache.json"
CACHE_JOURNAL = "building.jsonl"


def jpeg_decoder() -> str:
    """The fastest of JPEG_DECODERS that is installed."""
    for name in JPEG_DECODERS[:-1]:
        if importlib.util.find_spec(name) is not None:
            return name
    return JPEG_DECODERS[-1]


def cache_parts(path: str | Path) -> dict[str, Path]:
    """The caches below ``path`` by split: {"": path}, or {"train": ..., "test": ...}, or none.

    Raises ValueError for a cache that was not finished.
    """
    root = Path(path).expanduser()
    places = {"": root, "train": root / "train", "test": root / "test"}
    for place in places.values():
        if (place / CACHE_JOURNAL).is_file():
            raise ValueError(
                f"data: the cache {place} is not finished; repeat the `clustermim cache` command "
                "that was making it, and it goes on where it stopped"
            )
    found = {name: place for name, place in places.items() if (place / CACHE_INDEX).is_file()}
    return {"": found[""]} if "" in found else found


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


def has_test(path: str | Path) -> bool:
    """Whether a folder or a cache keeps test images apart from those to train on."""
    parts = cache_parts(path)
    root = Path(path).expanduser()
    if parts:
        return "test" in parts
    return (root / "train").is_dir() and any((root / name).is_dir() for name in TEST_NAMES)


def has_classes(path: str | Path) -> bool | None:
    """Whether the images to train on have labels, by a look at names; None where nothing is there.

    As `data.folder.list_folder` and a cache's index tell; of a folder two images are looked for.
    """
    root = Path(path).expanduser()
    if str(path) in ("", "digits"):
        return True if path else None
    try:
        parts = cache_parts(path)
        if parts:
            index = parts.get("train", next(iter(parts.values()))) / CACHE_INDEX
            return bool(json.loads(index.read_text(encoding="utf-8"))["classes"])
        top = root / "train" if (root / "train").is_dir() else root
        images = image_files(top)
        first = next(images).relative_to(top).parts
        if len(first) == 1:
            return False
        folders = (top / name for name in os.listdir(top) if name != first[0])
        return any(_holds_image(folder) for folder in folders if folder.is_dir())
    except (OSError, ValueError):  # gone, not to be read, or without images
        return None


def _holds_image(folder: Path) -> bool:
    try:
        return next(image_files(folder), None) is not None
    except ValueError:
        return False


def require_folder(path: str | Path) -> Path:
    """``path`` as an existing folder."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f'data: expected a folder of images, a cache or the name "digits", got {str(path)!r}, '
            "which is not an existing folder"
        )
    return root


def require_images(path: str | Path) -> None:
    """ValueError unless ``path`` is "digits", a cache or a folder with an image below it."""
    if str(path) != "digits" and not cache_parts(path):
        next(image_files(require_folder(path)))
