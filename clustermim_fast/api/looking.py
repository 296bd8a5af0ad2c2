"""`evaluate attention` and `evaluate unlabeled`: what an encoder does on images without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clustermim_fast import evaluate
from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.data import ImageSet, open_images
from clustermim_fast.image_files import has_test
from clustermim_fast.report import attention_chart, frequency_chart, neighbour_sheet
from clustermim_fast.train.distributed import choose_device

from .card import plain_card, run_config
from .fingerprint import images_fingerprint
from .sources import Source, open_source

__all__ = ["evaluate_attention", "evaluate_unlabeled", "few_of"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """Some images of a set, in its order."""

    whole: ImageSet
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def images(self, indices: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], un-augmented."""
        return self.whole.images(self.positions[indices])


def few_of(whole: ImageSet, wanted: int) -> Chosen:
    """``wanted`` of the images, evenly spaced; 0: all."""
    return Chosen(whole, torch.from_numpy(_spread(len(whole), wanted or len(whole))))


def evaluate_attention(
    run: str | Path,
    *,
    data: str = "",
    checkpoint: str = "last",
    images: int = 512,
    batch_size: int = 64,
    device: str = "auto",
    out: str | Path = "",
    progress: bool = False,
    say: Say = print,
    **source_options: Any,
) -> dict[str, Any]:
    """The ten attention statistics of "Beyond [cls]" by block, beside random initialisation.

    Args:
        run: a run folder, a folder written by `export`, or a timm name; its encoder must be a ViT.
        data: images, labels are not looked at; "" takes the run's own.
        images: at most so many, evenly spaced, of the test images where there are any; 0: all.
        out: file names without ending; "" is RUN/eval/attention and RUN/figures/attention of a run
            folder, elsewhere ./attention.

    Writes the numbers as JSON and a picture as PNG; prints a table; returns the result.
    Raises ValueError as `attention_statistics` and `open_source` do.
    """
    source, chosen, about = _open(run, checkpoint, data, images, source_options)
    rows = {}
    for name, encoder in source.encoders.items():
        found = evaluate.attention_statistics(
            encoder, chosen, mean=source.mean, std=source.std, batch_size=batch_size,
            device=choose_device(device), progress=progress, name=name,
        )  # fmt: skip
        rows[name] = {
            "mean": {key: _numbers(value) for key, value in found.values.items()},
            "deviation_over_images": {key: _numbers(value) for key, value in found.spread.items()},
        }
    result = {
        "kind": "attention",
        **about,
        "patches": found.patches,
        "heads": found.heads,
        "statistics": evaluate.STATISTICS,
        "encoders": rows,
    }
    means = {name: row["mean"] for name, row in rows.items()}
    drawn = {
        name: {key: [np.nan if v is None else v for v in values] for key, values in row.items()}
        for name, row in means.items()
    }
    picture = attention_chart(drawn, evaluate.STATISTICS, found.patches)
    result["card"] = _card(source, chosen, device)
    written = _write(source, out, "attention", result, {"attention": picture})
    _say_attention(means, result, say)
    say(f"written: {written}")
    return result


def _say_attention(means: dict[str, Any], result: dict[str, Any], say: Say) -> None:
    patches = result["patches"]
    say(f"attention of {result['images']:,} images, {patches} patches (ln {patches} = "
        f"{np.log(patches):.2f}), {result['heads']} heads; first and last block")  # fmt: skip
    for key, title in evaluate.STATISTICS.items():
        ends = "   ".join(
            f"{name} {_text(row[key][0])} -> {_text(row[key][-1])}" for name, row in means.items()
        )
        say(f"  {title:<42} {ends}")


def evaluate_unlabeled(
    run: str | Path,
    *,
    data: str = "",
    checkpoint: str = "last",
    images: int = 2048,
    queries: int = 8,
    neighbours: int = 8,
    pool: str = "mean",
    batch_size: int = 256,
    device: str = "auto",
    out: str | Path = "",
    progress: bool = False,
    say: Say = print,
    **source_options: Any,
) -> dict[str, Any]:
    """What features are like without labels: RankMe, nearest neighbours, spatial frequencies.

    Each beside random initialisation; RankMe of raw pixels too. Arguments as `evaluate_attention`;
    besides:
        queries, neighbours: lines and neighbours a line of the sheet.
        pool: "mean" of the patch tokens, or "cls".

    Writes the numbers as JSON; "neighbours", "neighbours_random_init" and "frequency" as PNG.
    Raises ValueError where there are too few images, and as `open_source` does.
    """
    source, chosen, about = _open(run, checkpoint, data, images, source_options)
    if not 1 <= neighbours < len(chosen):
        raise ValueError(
            f"neighbours: expected at least 1 and fewer than the {len(chosen)} images, got "
            f"{neighbours}"
        )
    view: dict[str, Any] = {"mean": source.mean, "std": source.std}
    place = choose_device(device)
    asked = torch.from_numpy(_spread(len(chosen), queries))
    rows: dict[str, Any] = {}
    sheets: dict[str, Image.Image] = {}
    waves = {}
    for name, encoder in source.encoders.items():
        features = evaluate.encoder_features(
            encoder, chosen, pool=pool, batch_size=batch_size, device=place, progress=progress,
            name=name, **view,
        )  # fmt: skip
        rows[name] = {"rankme": evaluate.rankme(features), "width": features.shape[1]}
        found = evaluate.nearest_neighbours(features, asked, neighbours)
        near = chosen.images(found.flatten()).unflatten(0, found.shape)
        suffix = "" if name == "pretrained" else f"_{name}"
        sheets[f"neighbours{suffix}"] = neighbour_sheet(chosen.images(asked), near)
        few = Chosen(chosen.whole, chosen.positions[torch.from_numpy(_spread(len(chosen), 256))])
        waves[name] = evaluate.block_frequencies(encoder, few, device=place, **view)
        rows[name]["log_amplitude"] = [_numbers(curve) for curve in waves[name].log_amplitude]
        rows[name]["variance"] = _numbers(waves[name].variance)
    pixels = evaluate.pixel_features(chosen, batch_size=batch_size, **view)
    rows["raw_pixels"] = {"rankme": evaluate.rankme(pixels), "width": pixels.shape[1]}
    sheets["frequency"] = frequency_chart(
        {name: [curve.tolist() for curve in wave.log_amplitude] for name, wave in waves.items()},
        {name: wave.variance.tolist() for name, wave in waves.items()},
    )
    result = {"kind": "unlabeled", "pool": pool, **about, "encoders": rows}
    result["card"] = _card(source, chosen, device)
    written = _write(source, out, "unlabeled", result, sheets)
    say(f"RankMe (effective rank) of the features of {len(chosen):,} images")
    for name, row in rows.items():
        most = min(row["width"], len(chosen))
        say(f"  {evaluate.ROW_NAMES.get(name, name):<24} {row['rankme']:8.1f} of at most {most:,}")
    say(f"written: {written}")
    return result


def _open(
    run: str | Path, checkpoint: str, data: str, images: int, options: dict[str, Any]
) -> tuple[Source, Chosen, dict[str, Any]]:
    source = open_source(run, checkpoint, **options)
    path = data if data in ("", "digits") else str(Path(data).expanduser().resolve())
    path = path or source.data
    if not path:
        raise ValueError(f"data: {run} knows no images; give data=DIR")
    if images < 0:
        raise ValueError(f"images: expected a number of images, or 0 for all, got {images}")
    holdout = source.holdout if path == source.data else 0.0
    split = "test" if holdout or path == "digits" else "all"
    if path != "digits" and (Path(path) / "train").is_dir():
        split = "test" if has_test(path) else "train"
    whole = open_images(
        path, size=source.image_size, split=split, holdout=holdout, eval_crop=source.eval_crop,
        in_memory="no",
    )  # fmt: skip
    chosen = few_of(whole, images)
    about = {**source.about, "data": path, "split": split, "images": len(chosen)}
    return source, chosen, about


def _card(source: Source, chosen: Chosen, device: str) -> dict[str, Any]:
    data = {
        "fingerprint": images_fingerprint(chosen.whole),
        "mean": list(source.mean),
        "std": list(source.std),
    }
    place, config = str(choose_device(device)), run_config(source.folder)
    return plain_card(source.encoders, data, device=place, config=config)


def _write(
    source: Source, out: str | Path, name: str, result: dict[str, Any], drawn: dict[str, Any]
) -> str:
    """Numbers and pictures to the run folder, or under the names of ``out``; what was written."""
    in_run = source.folder is not None and not out
    base = Path(out or name).expanduser()
    numbers = base.with_name(f"{base.name}.json")
    if in_run:
        assert source.folder is not None
        numbers = source.folder / "eval" / f"{name}.json"
    numbers.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(numbers, json.dumps(result, indent=2) + "\n")
    written = [str(numbers)]
    for key, picture in drawn.items():
        own = base.name if key == name else f"{base.name}_{key}"
        path = base.with_name(f"{own}.png")
        if in_run:
            assert source.folder is not None
            path = source.folder / "figures" / f"{key}.png"
            path.parent.mkdir(exist_ok=True)
        picture.save(path)
        written.append(str(path))
    return ", ".join(written)


def _spread(count: int, wanted: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Up to ``wanted`` positions, evenly spaced: a folder is sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def _numbers(values: Tensor) -> list[float | None]:
    """JSON has no NaN and no infinity: None."""
    return [float(v) if bool(v.isfinite()) else None for v in values]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
