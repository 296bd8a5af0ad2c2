"""What is evaluated and on what: an encoder beside its random initialisation, images split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from clustermim_fast.data import ImageSet, all_labels, open_images
from clustermim_fast.encoders import create_for_state, timm_filter
from clustermim_fast.train import load_run, random_model
from clustermim_fast.weights import load_weights, read_state

__all__ = ["Source", "class_indices", "open_source", "open_splits", "unreadable_note"]

HOLDOUT = 0.2


@dataclass(frozen=True)
class Source:
    """An encoder and what its images must look like."""

    encoders: dict[str, nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    eval_crop: float | None
    data: str
    holdout: float
    about: dict[str, Any]
    folder: Path | None


def open_source(
    run: str | Path,
    checkpoint: str = "last",
    *,
    weights: str | Path = "",
    model_options: Mapping[str, Any] | None = None,
) -> Source:
    """The encoder of a run folder, an exported folder or a timm name, beside it untrained.

    Args:
        checkpoint: of a run folder.
        weights: for a timm name, a checkpoint of any codebase whose names timm knows (timm, DINO,
            iBOT, DeiT, MAE, MoCo v3, BEiT): .safetensors, or .pth read with weights_only=True.
            "" fetches timm's own.
        model_options: timm's keyword arguments for a timm name with ``weights``.

    Raises:
        ValueError: no such run or model, or weights that do not fill the model, naming what is
            missing.
    """
    folder = Path(run).expanduser()
    if weights and folder.exists():
        raise ValueError(f"weights: {run} is a folder with weights of its own; give a timm name")
    if weights:
        return _from_file(str(run), weights, dict(model_options or {}))
    if (folder / "checkpoints").is_dir():
        return _from_run(folder, checkpoint)
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        return _from_timm(f"local-dir:{folder}", str(folder))
    if folder.exists():
        raise ValueError(
            f"run: {run} is neither a run folder (no checkpoints/) nor an exported encoder "
            "(no model.safetensors)"
        )
    if not timm.is_model(str(run)):
        raise ValueError(f"run: no such run folder and no such timm model: {run}")
    return _from_timm(str(run), str(run))


def _from_run(folder: Path, checkpoint: str) -> Source:
    loaded = load_run(folder, checkpoint)
    data = loaded.config.data
    assert data.mean is not None
    assert data.std is not None
    assert data.image_size is not None
    encoders: dict[str, Any] = {
        "pretrained": loaded.model.encoder,
        "random_init": random_model(loaded.config).encoder,
    }
    about = {
        "run": folder.resolve().name,
        "method": loaded.config.method,
        "checkpoint": checkpoint,
        "step": loaded.step,
        "epoch": loaded.epoch,
    }
    return Source(
        encoders=encoders,
        mean=data.mean,
        std=data.std,
        image_size=data.image_size,
        eval_crop=data.eval_crop,
        data=data.path,
        holdout=data.holdout,
        about=about,
        folder=folder,
    )


def _from_timm(name: str, shown: str) -> Source:
    pretrained = timm.create_model(name, pretrained=True, num_classes=0)
    untrained = _untrained(lambda: timm.create_model(name, pretrained=False, num_classes=0))
    return _of_timm(pretrained, untrained, {"run": shown})


def _from_file(name: str, weights: str | Path, options: dict[str, Any]) -> Source:
    state = read_state(weights)
    make = partial(create_for_state, name, state.keys(), **options)
    pretrained = make()
    verdict = load_weights(
        pretrained, weights, state=state, adapt=timm_filter(name, pretrained), complete=True
    )
    about = {"run": name, "weights": str(weights), "loaded": verdict.line()}
    return _of_timm(pretrained, _untrained(make), about)


def _untrained(make: Callable[[], nn.Module]) -> nn.Module:
    """timm's own from seed 0: how an encoder from elsewhere began is not known."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _of_timm(pretrained: nn.Module, untrained: nn.Module, about: dict[str, Any]) -> Source:
    view = resolve_model_data_config(pretrained)
    encoders = {"pretrained": pretrained, "random_init": untrained}
    # What a ViT was made for; timm's config still has the size of the name.
    own = getattr(getattr(pretrained, "patch_embed", None), "img_size", None)
    height, width = own or view["input_size"][1:]
    return Source(
        encoders=encoders,
        mean=tuple(view["mean"]),
        std=tuple(view["std"]),
        image_size=(int(height), int(width)),
        eval_crop=float(view["crop_pct"]),
        data="",
        holdout=0.0,
        about=about,
        folder=None,
    )


def open_splits(path: str, source: Source) -> tuple[ImageSet, ImageSet, list[str]]:
    """Images to fit on and to test on, and notes on where the test images come from."""
    root = Path(path)
    holdout, notes = source.holdout, []
    if path != "digits" and not (root / "train").is_dir():
        if path == source.data and holdout:
            notes.append(f"Test: the {100 * holdout:.0f} % held out of {path} (data.holdout).")
        else:
            holdout = HOLDOUT
            _require_enough_to_hold_out(path)
            seen = "; pretraining saw them, without labels" if path == source.data else ""
            notes.append(f"Test: {100 * holdout:.0f} % of {path}, by class{seen}.")
    train, test = (
        open_images(
            path,
            size=source.image_size,
            split=split,
            holdout=holdout,
            eval_crop=source.eval_crop,
        )
        for split in ("train", "test")
    )
    return train, test, notes


def unreadable_note(images: ImageSet) -> str:
    """What became of the files that could not be read; "" where there are none."""
    if not images.broken:
        return ""
    # A set on the disk has as many places as files, and a place keeps the label of its file.
    became = "left out" if images.in_memory else "replaced by the next one, under the old label"
    return f"{len(images.broken)} unreadable files of {images.source} were {became}."


def _require_enough_to_hold_out(path: str) -> None:
    labels = all_labels(path)
    if labels is None:
        raise ValueError(_no_labels(path))
    if round(HOLDOUT * int(np.bincount(labels).max())) == 0:
        raise ValueError(
            f"data: {path} has at most {np.bincount(labels).max()} images of a class, too few to "
            f"hold {100 * HOLDOUT:.0f} % of each out as a test set; give data=DIR with more"
        )


def _no_labels(source: str) -> str:
    return (
        f"data: an evaluation needs labels, and {source} has no class sub-folders (two at least); "
        "give data=DIR with DIR/<class>/, or DIR/train/<class>/ and DIR/test/<class>/; "
        "`clustermim evaluate unlabeled` and `attention` need none"
    )


def class_indices(
    train: ImageSet, test: ImageSet, path: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[str, ...]]:
    """Class indices int64 [N] of both splits by the names of the first, and those names."""
    for part in (train, test):
        if part.labels is None or part.class_names is None:
            raise ValueError(_no_labels(part.source))
    assert train.labels is not None
    assert train.class_names is not None
    assert test.labels is not None
    assert test.class_names is not None
    number = {name: index for index, name in enumerate(train.class_names)}
    unknown = [name for name in test.class_names if name not in number]
    if unknown:
        raise ValueError(
            f"data: {test.source} has classes that {train.source} lacks: {', '.join(unknown[:5])}"
        )
    translate = np.array([number[name] for name in test.class_names], dtype=np.int64)
    return train.labels, translate[test.labels], tuple(train.class_names)
