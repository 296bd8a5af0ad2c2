"""Many tokenizers on one set of images: which to pretrain with, before pretraining."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clustermim_fast import recipes
from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.data import DataConfig, ImageSet, open_images
from clustermim_fast.report import Scored, ranking_picture, ranking_table
from clustermim_fast.tokenizers import (
    Tokenizer,
    load_tokenizer,
    tcas,
    token_class_counts,
    token_stability,
    token_statistics,
)
from clustermim_fast.tokenizers.alignment import VARIANTS
from clustermim_fast.train.distributed import choose_device

from .fingerprint import images_fingerprint

__all__ = ["rank_tokenizers", "tcas_of_tokenizers"]

FEW_PATCHES = 10  # of each class a token; below, TCAS falls with K whatever the tokens are
STABILITY = "stability (mean kappa under noise, blur, jitter, shift; higher is better)"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """Tokenizers with their names, and the images they are judged on."""

    names: list[str]
    tokenizers: list[Tokenizer]
    images: ImageSet
    ids: np.ndarray[Any, np.dtype[np.int64]]
    batch_size: int
    device: torch.device

    @classmethod
    def open(
        cls,
        data: str | Path,
        tokenizers: str | Sequence[str | Path],
        images: int,
        img_size: tuple[int, int] | None,
        split: str,
        batch_size: int,
        device: str,
        eval_crop: float | None = None,
    ) -> Choice:
        """Files, and evaluation views of ``images`` images (0: all), evenly spaced."""
        place = choose_device(device)
        files = list(_files(tokenizers))
        loaded = [load_tokenizer(file).to(place) for file in files]
        path = str(data) if str(data) == "digits" else str(Path(data).expanduser().resolve())
        size = img_size or recipes.auto_recipe(path)[0].data.image_size
        assert size is not None
        for file, tokenizer in zip(files, loaded, strict=True):
            if any(side % tokenizer.patch_size for side in size):
                raise ValueError(
                    f"img_size: {size[0]}x{size[1]} is not a multiple of the patch_size "
                    f"{tokenizer.patch_size} of {file}; give img_size="
                )
        crop = DataConfig(eval_crop=eval_crop).eval_crop  # refuses a share that is none
        found = open_images(path, size=size, split=split, eval_crop=crop)
        count = min(len(found), images or len(found))
        ids = np.linspace(0, len(found) - 1, count).round().astype(np.int64)
        return cls(_short(files), loaded, found, ids, batch_size, place)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels (zeros where there are none)."""
        for start in range(0, len(self.ids), self.batch_size):
            ids = self.ids[start : start + self.batch_size]
            labels = self.images.labels
            known = np.zeros(len(ids), dtype=np.int64) if labels is None else labels[ids]
            yield self.images.images(ids).to(self.device), torch.from_numpy(known)

    def about(self) -> dict[str, Any]:
        """What the numbers are of."""
        return {
            "data": self.images.source,
            "fingerprint": images_fingerprint(self.images),
            "images": len(self.ids),
            "image_size": list(self.images.image_size),
            "eval_crop": self.images.eval_crop,
        }

    def said(self) -> str:
        """The same as a line."""
        height, width = self.images.image_size
        return f"{len(self.ids):,} of {self.images.summary()}; views of {height} x {width}"


def tcas_of_tokenizers(
    data: str | Path,
    tokenizers: str | Sequence[str | Path],
    *,
    out: str | Path = "tcas",
    variant: str = "default",
    images: int = 10_000,
    img_size: tuple[int, int] | None = None,
    split: str = "train",
    batch_size: int = 128,
    device: str = "auto",
    eval_crop: float | None = None,
    say: Say = print,
    **switches: Any,
) -> list[dict[str, Any]]:
    """Score tokenizers by TCAS in one pass over labelled images; lower is better.

    Args:
        data: a folder with class sub-folders, or "digits".
        tokenizers: files, or folders of them; text is read as a list with commas.
        out: OUT.json and OUT.png are written.
        variant: what the ranking goes by, see ``tokenizers.tcas``; all are in the table.
        images: evenly spaced over the set; 0: all.
        img_size: (height, width) of the views; None: as ``pretrain data=`` would choose.
        eval_crop: share of the resized image that a view keeps, as ``DataConfig.eval_crop``.
        switches: rows, columns, pairs, token_weight, balance_classes of ``tokenizers.tcas``, for
            ``variant``; the others stay beside it as they are.

    Returns the rows of the table, best first.
    Raises ValueError where there are no labels.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
    tcas(np.eye(2), variant, **switches)  # refuses others than it knows before the images
    choice = Choice.open(data, tokenizers, images, img_size, split, batch_size, device, eval_crop)
    if choice.images.labels is None or choice.images.class_names is None:
        raise ValueError(
            f"data: TCAS needs labels, and {choice.images.source} has no class sub-folders "
            "(two at least); give data=DIR with DIR/<class>/, or use `clustermim tokenizer rank`, "
            "which needs none"
        )
    say(choice.said())
    classes = len(choice.images.class_names)
    tables = token_class_counts(choice.tokenizers, choice.batches(), classes)
    rows = []
    for name, tokenizer, counts in zip(choice.names, choice.tokenizers, tables, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("once")
            scores = {
                key: tcas(counts, key, **(switches if key == variant else {})) for key in VARIANTS
            }
            stats = token_statistics(counts)
        rows.append({**_identity(name, tokenizer), "tcas": scores, **asdict(stats)})
    rows.sort(key=lambda row: row["tcas"][variant])
    scored = [
        Scored(
            row["name"],
            row["family"],
            row["tokens"],
            row["tcas"][variant],
            {key: value for key, value in row["tcas"].items() if key != variant}
            | {key: row[key] for key in ("nmi", "purity", "perplexity", "dead")}
            | {"patches/token": row["patches_per_token"]},
        )
        for row in rows
    ]
    say(ranking_table(scored, "TCAS" if variant == "default" else variant))
    given = " ".join(f"{key}={value}" for key, value in switches.items())
    say(f"ranked by {VARIANTS[variant]}{given and f', {given}'}; lower is better in all four")
    for row in rows:
        if row["patches_per_token"] < FEW_PATCHES:
            say(
                f"warning: {row['name']}: K = {row['tokens']} nears the number of patches "
                f"({row['patches_per_token']:.3g} of the smallest class a token); TCAS then falls "
                "with K whatever the tokens are. Use more images, or compare smaller K"
            )
    _write(out, {**choice.about(), "variant": variant, "switches": switches, "formulas": VARIANTS,
                 "rows": rows}, say)  # fmt: skip
    ranking_picture(scored, "TCAS, lower is better").save(Path(out).with_suffix(".png"))
    return rows


def rank_tokenizers(
    data: str | Path,
    tokenizers: str | Sequence[str | Path],
    *,
    out: str | Path = "rank",
    images: int = 1000,
    img_size: tuple[int, int] | None = None,
    split: str = "train",
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    eval_crop: float | None = None,
    say: Say = print,
) -> list[dict[str, Any]]:
    """Rank tokenizers without labels, by how stable their ids are; usage and margin beside it.

    Arguments as in :func:`tcas_of_tokenizers`; ``seed`` is the noise's. What the numbers are:
    ``tokenizers.stability.Stability``. Returns the rows of the table, most stable first.
    """
    choice = Choice.open(data, tokenizers, images, img_size, split, batch_size, device, eval_crop)
    say(choice.said())
    found = token_stability(choice.tokenizers, (batch for batch, _ in choice.batches()), seed=seed)
    rows = [
        {**_identity(name, tokenizer), **asdict(stability)}
        for name, tokenizer, stability in zip(choice.names, choice.tokenizers, found, strict=True)
    ]
    rows.sort(key=lambda row: -row["score"])
    scored = [
        Scored(
            row["name"],
            row["family"],
            row["tokens"],
            row["score"],
            {f"{key} %": 100 * value for key, value in row["unchanged"].items()}
            | {key: row[key] for key in ("margin", "perplexity", "dead")},
        )
        for row in rows
    ]
    say(ranking_table(scored, "stability"))
    say(f"ranked by {STABILITY}; %: patches that keep their id")
    _write(out, {**choice.about(), "seed": seed, "score": STABILITY, "rows": rows}, say)
    ranking_picture(scored, "stability, higher is better").save(Path(out).with_suffix(".png"))
    return rows


def _files(tokenizers: str | Sequence[str | Path]) -> Iterator[Path]:
    given = tokenizers.split(",") if isinstance(tokenizers, str) else list(tokenizers)
    for text in given:
        path = Path(text).expanduser()
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside or not text:
            raise ValueError(f"tokenizers: no .safetensors file in {str(text)!r}")
        yield from inside


def _short(files: list[Path]) -> list[str]:
    """File names without ending; with their folder where two are equal."""
    stems = [file.stem for file in files]
    return [
        stem if stems.count(stem) == 1 else f"{file.parent.name}/{stem}"
        for stem, file in zip(stems, files, strict=True)
    ]


def _identity(name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    settings = tokenizer.describe()
    parts = [tokenizer.kind]
    if tokenizer.kind == "feature":
        parts.append(f"{settings['architecture']} layer {settings['layer']}")
    elif settings["per_patch_norm"]:
        parts.append("per-patch norm")
    if tokenizer.metric != "euclidean":
        parts.append(tokenizer.metric)
    return {
        "name": name,
        "family": " ".join(parts),
        "tokens": tokenizer.num_clusters,
        "patch_size": tokenizer.patch_size,
        "tokenizer": tokenizer.fingerprint(),
        "settings": settings,
    }


def _write(out: str | Path, result: dict[str, Any], say: Say) -> None:
    file = Path(out).with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps(result, indent=2) + "\n")
    say(f"{file} and {file.with_suffix('.png')}")
