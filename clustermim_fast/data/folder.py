"""Find the images of a folder, their classes and their train / test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clustermim_fast import counter_rng
from clustermim_fast.image_files import TEST_NAMES, image_files, require_folder


@dataclass(frozen=True)
class Listing:
    """Image files in a fixed order, with the class of each where the folder tells one."""

    paths: list[Path]
    labels: npt.NDArray[np.int64] | None
    class_names: list[str] | None


def list_folder(path: str | Path, split: str, holdout: float) -> Listing:
    """List the images below `path`, sorted by path.

    Classes are the names of the first-level sub-folders; a folder with images at its top level, or
    with one sub-folder only, has no classes. With a train/ sub-folder, split="train" is train/ and
    split="test" is test/, val/, valid/ or validation/; without one, "train" is everything that
    "test" (a share `holdout` per class, by a hash of the position) leaves. "all" ignores splits.
    """
    root = require_folder(path)
    has_train = (root / "train").is_dir()
    if split == "all" or not has_train:
        listing = _scan(root)
        if split == "all" or (split == "train" and holdout == 0.0):
            return listing
        return _hold_out(listing, root, split, holdout)
    if split == "train":
        return _scan(root / "train")
    for name in TEST_NAMES:
        if (root / name).is_dir():
            return _scan(root / name)
    raise ValueError(
        f"data: {root} has train/ but none of {', '.join(n + '/' for n in TEST_NAMES)}, "
        "and its test images were asked for"
    )


def _scan(root: Path) -> Listing:
    paths = sorted(image_files(root), key=lambda item: item.relative_to(root).as_posix())
    parts = [item.relative_to(root).parts for item in paths]
    if any(len(part) == 1 for part in parts):
        return Listing(paths, None, None)
    class_names = sorted({part[0] for part in parts})
    if len(class_names) < 2:
        return Listing(paths, None, None)
    number = {name: index for index, name in enumerate(class_names)}
    labels = np.array([number[part[0]] for part in parts], dtype=np.int64)
    return Listing(paths, labels, class_names)


def _hold_out(listing: Listing, root: Path, split: str, holdout: float) -> Listing:
    if holdout == 0.0:
        raise ValueError(
            f"data: {root} has no train/ and test/ sub-folders, and its test images were asked "
            "for; make these sub-folders or set data.holdout, for instance 0.2"
        )
    test = held_out(listing.labels, len(listing.paths), holdout)
    keep = np.flatnonzero(test if split == "test" else ~test)
    labels = None if listing.labels is None else listing.labels[keep]
    return Listing([listing.paths[i] for i in keep], labels, listing.class_names)


def held_out(
    labels: npt.NDArray[np.int64] | None, size: int, share: float
) -> npt.NDArray[np.bool_]:
    """Which of `size` samples belong to the test split: round(share * n) of each class, bool
    [size].

    Fixed for ever: it depends on the samples' order and classes only, not on a run's seed.
    """
    keys = counter_rng.bits(0, 0, np.arange(size), counter_rng.STREAM_SPLIT, 1)[:, 0]
    classes = np.zeros(size, dtype=np.int64) if labels is None else labels
    test = np.zeros(size, dtype=bool)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        order = members[np.argsort(keys[members], kind="stable")]
        test[order[: round(share * len(members))]] = True
    return test
