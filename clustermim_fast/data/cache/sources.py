"""What a cache is made from: folders, torchvision sets, Parquet files, tar files.

A source is a fixed list of entries that can be read in any order, from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustermim_fast.data.cache.archives import open_parquet, open_tars
from clustermim_fast.data.folder import Listing, list_folder
from clustermim_fast.image_files import TEST_NAMES, cache_parts, image_files, require_folder

__all__ = ["Source", "open_sources"]

_TRAIN_NAMES = ("train", "training")
_WORDS = dict.fromkeys(_TRAIN_NAMES, "train") | dict.fromkeys(TEST_NAMES, "test")


@dataclass(frozen=True)
class Source:
    """Entries in a fixed order.

    Attributes:
        names: of the entries.
        read: entry -> the bytes of an image file, or an opened PIL image; OSError where it cannot.
        labels: int64 [N], or None.
        class_names: by label, or None.
    """

    names: list[str]
    read: Callable[[int], Any]
    labels: npt.NDArray[np.int64] | None
    class_names: list[str] | None


def open_sources(data: str | Path) -> dict[str, Source]:
    """The sources of ``data`` by split: {"": all of it}, or {"train": ..., "test": ...}.

    Args:
        data: a folder of images (as `open_images` reads it); torchvision:NAME:ROOT; a file or
            folder of .parquet with an image column, as Hugging Face stores sets; a file or folder
            of .tar with images, and labels in .cls members (WebDataset).

    Raises:
        ValueError: none of these, or a package is missing (naming the pip command).
    """
    text = str(data)
    if text == "digits":
        raise ValueError('data: the built-in set "digits" is in memory and needs no cache')
    if text.startswith("torchvision:"):
        return _torchvision(text)
    root = Path(text).expanduser()
    unpacked = _has_images(root)  # archives beside them are what they were unpacked from
    for ending, opened in ((".parquet", open_parquet), (".tar", open_tars)):
        files = [] if unpacked else _files(root, ending)
        if files:
            parts = _by_split(files)
            return {split: Source(*opened(parts[split])) for split in parts}
    if cache_parts(require_folder(root)):
        raise ValueError(f"data: {root} is a cache already")
    if not (root / "train").is_dir():
        return {"": _of_listing(list_folder(root, "all", 0.0), root)}
    splits = ["train"]
    if any((root / name).is_dir() for name in TEST_NAMES):
        splits.append("test")
    return {split: _of_listing(list_folder(root, split, 0.0), root) for split in splits}


def _of_listing(listing: Listing, root: Path) -> Source:
    names = [path.relative_to(root).as_posix() for path in listing.paths]
    paths = listing.paths
    return Source(names, lambda i: paths[i].read_bytes(), listing.labels, listing.class_names)


def _has_images(root: Path) -> bool:
    try:
        return root.is_dir() and next(image_files(root)) is not None
    except ValueError:
        return False


def _files(root: Path, ending: str) -> list[Path]:
    if root.is_file():
        return [root] if root.name.endswith(ending) else []
    return sorted(p for place in (root, root / "data") for p in place.glob(f"*{ending}"))


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    """Files by the words train, test, val in their names; {"": files} where none says train."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        words = "".join(c if c.isalpha() else " " for c in file.name.lower()).split()
        split = next((_WORDS[word] for word in words if word in _WORDS), "")
        parts.setdefault(split, []).append(file)
    if "train" not in parts or "" in parts:
        return {"": files}
    return {split: parts[split] for split in ("train", "test") if split in parts}


def _torchvision(text: str) -> dict[str, Source]:
    import inspect

    from torchvision import datasets

    _, _, rest = text.partition(":")
    name, colon, root = rest.partition(":")
    if not colon or not inspect.isclass(getattr(datasets, name, None)):
        raise ValueError(
            f"data: expected torchvision:NAME:ROOT, as torchvision:CIFAR10:data, got {text!r}"
        )
    kind: Any = getattr(datasets, name)
    known = inspect.signature(kind).parameters
    if "train" in known:
        choices: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in known:
        choices = {"train": {"split": "train"}, "test": {"split": "test"}}
        if name in ("ImageNet", "Imagenette", "Places365", "INaturalist"):
            choices["test"] = {"split": "val"}
    else:
        choices = {"": {}}
    try:
        return {split: _of_dataset(kind(root, **given)) for split, given in choices.items()}
    except RuntimeError as error:
        raise ValueError(f"data: torchvision cannot open {name} in {root}: {error}") from error


def _of_dataset(dataset: Any) -> Source:
    labels = None
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            labels = np.asarray(values).astype(np.int64)
            break
    classes = list(getattr(dataset, "classes", None) or [])
    if labels is not None and not classes:
        classes = list(range(int(labels.max()) + 1))
    names = [str(index) for index in range(len(dataset))]
    return Source(
        names,
        lambda index: dataset[index][0],
        labels,
        None if labels is None else [str(label) for label in classes],
    )
