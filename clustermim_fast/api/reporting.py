"""The report of a run folder, and a look at a tokenizer file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clustermim_fast import recipes
from clustermim_fast.data import ImageSet, open_images
from clustermim_fast.masking import Masker
from clustermim_fast.report import (
    RunView,
    codebook_picture,
    evaluation_title,
    token_map_picture,
    write_report,
)
from clustermim_fast.report.charts import usage
from clustermim_fast.tokenizers import FeatureTokenizer, Tokenizer, load_tokenizer
from clustermim_fast.train import LoadedRun, load_run, to_dict
from clustermim_fast.train.log import read_rows

from .card import versions
from .results import progress_rows, read_result

__all__ = ["report_run", "show_tokenizer"]

SHOWN = 10
LOOKED_AT = 256
COUNTED_IMAGES = 4096
COUNTED_FEATURES = (
    25_000  # patches: 128 images of 224 pixels, a quarter of a minute of one CPU core
)
Say = Callable[[str], None]


def report_run(
    run_dir: str | Path, *, checkpoint: str = "last", images: ImageSet | None = None
) -> Path:
    """Write RUN/report.html and RUN/figures/, with the evaluations found in RUN/eval.

    images: the run's training images where the caller has them open.
    Raises ValueError where the folder has no checkpoint or its images are gone.
    """
    folder = Path(run_dir)
    loaded = load_run(folder, checkpoint)
    return write_report(view_of(folder, loaded, _open(loaded) if images is None else images))


def view_of(folder: Path, loaded: LoadedRun, images: ImageSet, refresh_s: int = 0) -> RunView:
    """What a page is made of; with ``refresh_s``, of a run that goes on: tokens are not counted."""
    samples = torch.from_numpy(_spread(len(images), SHOWN))
    config = loaded.config
    masks = _masker(loaded)(config.seed, 0, samples.numpy())
    usage, counted = None, 0
    if loaded.tokenizer is not None and not refresh_s:
        usage, counted = _usage(loaded.tokenizer, images)
    assert config.data.mean is not None
    assert config.data.std is not None
    metrics = progress_rows(folder)
    evaluations, broken = _evaluations(folder / "eval")
    return RunView(
        run_dir=folder,
        method=config.method,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        mean=config.data.mean,
        std=config.data.std,
        samples=images.images(samples),
        mask=masks.mask,
        replaced=masks.replaced,
        per_patch_norm=bool(config.loss.norm_pix_loss),
        usage=usage,
        usage_images=counted,
        metrics=metrics,
        config=to_dict(config),
        evaluations=evaluations,
        broken=broken,
        epochs=read_rows(folder / "eval" / "epochs.jsonl"),
        refresh_s=refresh_s,
        about=_about(loaded, images, metrics, _unreadable(folder / "skipped_files.txt")),
        versions=versions(),
    )


def show_tokenizer(
    path: str | Path,
    out: str | Path | None = None,
    *,
    data: str | Path = "",
    img_size: tuple[int, int] | None = None,
    say: Say = print,
) -> Path:
    """Print what a tokenizer file holds and write its codebook as a picture beside it.

    With ``data``, a folder of images: how often it uses its tokens there, and token maps of some of
    them (views of ``img_size``, as ``pretrain data=`` would choose where None) in OUT_maps.png.
    """
    tokenizer = load_tokenizer(path)
    say(f"{path}: K = {tokenizer.num_clusters}, patch_size {tokenizer.patch_size}")
    for name, value in tokenizer.describe().items():
        if name != "patch_size":
            say(f"  {name:<15} {value}")
    report = getattr(tokenizer, "report", None)
    counts = torch.ones(tokenizer.num_clusters, dtype=torch.int64)
    if report is not None:
        seconds, rounds = f"{report.seconds:.1f} s", len(report.iterations)
        say(f"  {'fit':<15} {report.algorithm}, {rounds} iterations, {seconds}: {report.stop}")
        say(f"  {'patches':<15} {report.num_rows:,}, inertia {report.inertia:.6g}")
        say(f"  {'unused':<15} {report.unused} of {report.num_clusters} centroids")
        if len(report.counts) == tokenizer.num_clusters:
            counts = torch.tensor(report.counts).round().long()
    target = Path(out) if out else Path(path).with_suffix(".png")
    if data:
        counts = _show_images(tokenizer, str(data), img_size, target, say)
    target.parent.mkdir(parents=True, exist_ok=True)
    codebook_picture(tokenizer, counts).save(target)
    say(f"  {'codebook':<15} {target}")
    return target


def _show_images(
    tokenizer: Tokenizer, data: str, img_size: tuple[int, int] | None, target: Path, say: Say
) -> Tensor:
    """Token maps of a few images, and the counts [K] of the tokens of many."""
    size = img_size or recipes.auto_recipe(data)[0].data.image_size
    assert size is not None
    images = open_images(data, size=size, in_memory="no")
    tokenizer.grid_size(*size)  # refuses a size that patches do not fill
    chosen = images.images(_spread(len(images), SHOWN))
    if isinstance(tokenizer, FeatureTokenizer) and tokenizer.pictures is None:
        tokenizer.look_at(images.images(_spread(len(images), LOOKED_AT)))
    counts, number = _usage(tokenizer, images)
    perplexity, dead = usage(counts.numpy())
    say(f"  {'tokens used':<15} perplexity {perplexity:.1f}, {dead} never, in {number:,} images")
    maps = target.with_name(f"{target.stem}_maps.png")
    maps.parent.mkdir(parents=True, exist_ok=True)
    token_map_picture(tokenizer, chosen).save(maps)
    say(f"  {'token maps':<15} {maps}")
    return counts


def _masker(loaded: LoadedRun) -> Masker:
    model: Any = loaded.model
    return Masker(loaded.config.mask, model.grid, model.patch_size)


def _open(loaded: LoadedRun) -> ImageSet:
    data = loaded.config.data
    assert data.image_size is not None
    # Few of the images are looked at: reading them from disk is quicker than reading all.
    return open_images(
        data.path,
        size=data.image_size,
        in_memory="no",
        holdout=data.holdout,
        eval_crop=data.eval_crop,
    )


def _spread(count: int, wanted: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Up to ``wanted`` positions, evenly spaced: a folder is sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def _usage(tokenizer: Tokenizer, images: ImageSet) -> tuple[Tensor, int]:
    wanted = COUNTED_IMAGES
    if tokenizer.kind == "feature":
        rows, columns = tokenizer.grid_size(*images.image_size)
        wanted = -(-COUNTED_FEATURES // (rows * columns))
    ids = _spread(len(images), wanted)
    counts = torch.zeros(tokenizer.num_clusters, dtype=torch.int64)
    for part in np.array_split(ids, -(-len(ids) // 256)):
        tokens = tokenizer(images.images(part)).flatten()
        counts += torch.bincount(tokens[tokens >= 0], minlength=tokenizer.num_clusters)
    return counts, len(ids)


KINDS = ("knn", "linear", "attentive", "finetune")


def _evaluations(folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Results by kind, low-shot ones after them by what they are; what is wrong with the others."""
    stems = [*KINDS, *sorted({path.stem for path in folder.glob("*.json")} - {*KINDS})]
    found, broken = {}, []
    for stem in stems:
        path = folder / f"{stem}.json"
        try:
            result = read_result(path) if path.is_file() else None
        except ValueError as error:
            broken.append(str(error))
            continue
        if result is not None:
            found[stem if stem in KINDS else evaluation_title(stem)] = result
    return found, broken


def _unreadable(path: Path) -> int:
    """How many files the run could not read; the images opened for a report are too few to tell."""
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def _trained(loaded: LoadedRun) -> str:
    optim = loaded.config.optim
    if optim.steps:
        return f"{loaded.step:,} of {optim.steps:,} steps"
    return f"{loaded.epoch} of {optim.epochs} epochs, {loaded.step:,} steps"


def _about(
    loaded: LoadedRun, images: ImageSet, metrics: list[dict[str, Any]], unreadable: int
) -> list[tuple[str, str]]:
    config, model = loaded.config, loaded.model
    encoder: Any = model.encoder
    size = sum(p.numel() for p in encoder.parameters()) / 1e6
    height, width = images.image_size
    rows, columns = model.grid  # type: ignore[misc]
    masker = _masker(loaded)
    facts = [
        ("images", f"{len(images):,} from {config.data.path}"),
        ("image size", f"{height} × {width} px"),
        ("patches", f"{rows} × {columns} of {config.model.patch_size} px"),
        ("encoder", f"{config.model.encoder}, {size:.2f} M parameters"),
        ("masked", f"{100 * masker.num_masked / (rows * columns):.0f} % of the patches"),
    ]
    if loaded.tokenizer is not None:
        facts.append(("centroids", f"K = {loaded.tokenizer.num_clusters}"))
    facts.append(("trained", _trained(loaded)))
    if metrics:
        last = metrics[-1]
        floor = f" (ln K = {last['loss_floor_lnK']:.2f})" if "loss_floor_lnK" in last else ""
        loss = last.get("token_loss", last["loss"])
        facts.append(("last loss", f"{loss:.3f}{floor}"))
        if "masked_accuracy" in last:
            accuracy, chance = 100 * last["masked_accuracy"], 100 * last["chance"]
            facts.append(("token accuracy", f"{accuracy:.1f} % (chance {chance:.1f} %)"))
        speed = sorted(line["images_per_s"] for line in metrics)
        facts.append(("speed", f"{speed[len(speed) // 2]:,.0f} images/s (median)"))
    if unreadable:
        facts.append(("unreadable files", f"{unreadable}, in skipped_files.txt"))
    return facts
