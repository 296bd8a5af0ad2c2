"""`evaluate segment`: a linear classifier of frozen patch features, by mean IoU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustermim_fast import evaluate
from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.data import open_masked_images
from clustermim_fast.evaluate import TokenSource
from clustermim_fast.train.distributed import choose_device

from .card import plain_card, run_config
from .fingerprint import files_fingerprint
from .sources import open_source

__all__ = ["evaluate_segmentation"]

Say = Callable[[str], None]


def evaluate_segmentation(
    run: str | Path,
    *,
    data: str,
    masks: str,
    checkpoint: str = "last",
    weights: str | Path = "",
    model_options: dict[str, Any] | None = None,
    batch_size: int = 16,
    device: str = "auto",
    out: str | Path = "",
    say: Say = print,
    **options: Any,
) -> dict[str, Any]:
    """Linear segmentation on frozen patch features, beside random initialisation and pixels.

    Args:
        run, checkpoint, weights, model_options: as `evaluate_run`.
        data: a folder of images, with train/ and test/ (or val/), or a fifth of it is held out.
        masks: a folder of PNG files of class indices (255: does not count); data/a/b.jpg belongs
            to masks/a/b.png.
        out: a file for the result; "" is RUN/eval/segment.json for a run folder, and none for
            others.
        options: penalties, held_out, max_patches, max_iter, seed of `evaluate.segment`.

    Views are those of the other evaluations (the encoder's size), masks cut alike. Prints a table;
    returns the result. Raises ValueError as `open_source`, `open_masked_images` and
    `evaluate.segment` do.
    """
    for key, value in (("data", data), ("masks", masks)):
        if not value:
            raise ValueError(f"{key}: expected a folder, got none; give {key}=DIR")
    source = open_source(run, checkpoint, weights=weights, model_options=model_options)
    crop = source.eval_crop or (0.875 if min(source.image_size) >= 160 else 1.0)
    train, test = (
        open_masked_images(data, masks, size=source.image_size, split=split, eval_crop=crop)
        for split in ("train", "test")
    )
    view: dict[str, Any] = {"mean": source.mean, "std": source.std}
    place = str(choose_device(device))
    sources: dict[str, Any] = {
        name: TokenSource(encoder, device=place, norm=_has_norm(encoder), **view)
        for name, encoder in source.encoders.items()
    }
    first = next(iter(sources.values()))
    first.encoder.eval().to(place)
    grid = first.batch(test.images(_one())).grid
    sources["raw_pixels"] = evaluate.pixel_patches(grid, **view)
    result = evaluate.segment(sources, train, test, batch_size=batch_size, **options)
    result = {**result, **source.about, "data": str(data), "masks": str(masks)}
    parts = {
        f"{split}_fingerprint": files_fingerprint([file for pair in part.pairs for file in pair])
        for split, part in (("train", train), ("test", test))
    }
    result["card"] = plain_card(
        source.encoders,
        parts | {key: list(value) for key, value in view.items()},
        device=place,
        config=run_config(source.folder),
    )
    file = Path(out).expanduser() if out else source.folder and source.folder / "eval/segment.json"
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps(result, indent=2) + "\n")
    _say(result, grid, say)
    return result


def _one() -> Any:
    import torch

    return torch.zeros(1, dtype=torch.int64)


def _has_norm(encoder: Any) -> bool:
    """A ViT has a norm over its tokens; a CNN's stands behind its pooling, if anywhere."""
    return hasattr(encoder, "blocks")


def _say(result: dict[str, Any], grid: tuple[int, int], say: Say) -> None:
    say(
        f"linear segmentation of {grid[0]} x {grid[1]} frozen patch features: "
        f"{result['train_images']:,} train and {result['test_images']:,} test images, "
        f"{result['classes']} classes"
    )
    say(f"  {'features':<24} {'mean IoU %':>10} {'95 % interval':>15} {'pixels right %':>15}")
    for row in result["rows"]:
        low, high = row["interval95_percent"]
        say(
            f"  {evaluate.ROW_NAMES.get(row['name'], row['name']):<24} {row['miou_percent']:>10.1f}"
            f" {f'{low:.1f} to {high:.1f}':>15} {row['pixel_accuracy_percent']:>15.1f}"
        )
