"""`evaluate` for a run folder, an exported encoder or a timm name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from clustermim_fast import evaluate
from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.evaluate import (
    AbMILPSettings,
    AttentiveSettings,
    FeatureOptions,
    FinetuneSettings,
    FinetuneTraining,
    Labelled,
    PoolingMaps,
    ProbeTraining,
    Subject,
    TokenSource,
)
from clustermim_fast.report import attention_maps
from clustermim_fast.train.distributed import choose_device

from .card import result_card, run_config
from .fingerprint import images_fingerprint
from .looking import few_of
from .sources import class_indices, open_source, open_splits, unreadable_note

__all__ = ["evaluate_run"]

Say = Callable[[str], None]
MAPPED = 8  # images of which attention maps are drawn


def evaluate_run(
    kind: str,
    run: str | Path,
    *,
    data: str = "",
    checkpoint: str = "last",
    weights: str | Path = "",
    model_options: Mapping[str, Any] | None = None,
    pool: str = "",
    batch_size: int = 256,
    device: str = "auto",
    cache: bool = True,
    out: str = "",
    progress: bool = False,
    say: Say = print,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate frozen features by ``kind`` "knn", "linear" or "attentive", or "finetune" the
    encoder; prints a table, returns the result.

    Args:
        run: a run folder, a folder written by `export`, or a timm name.
        data: labelled images; "" takes the run's own.
        checkpoint: of a run folder.
        weights, model_options: for a timm name, a checkpoint file (MAE, DINO, BEiT, ...) and
            timm's keyword arguments, see `open_source`.
        pool: "mean" of the patch tokens (what "" is), or "cls"; for "attentive" any of abmilp, map
            and those of `evaluate.poolings.fixed_pooling`, with commas ("": abmilp,cls,mean,
            without cls where there is none).
        cache: keep features in RUN/eval/features for the next evaluation ("attentive" keeps none).
        out: a file for the result; "" is RUN/eval/<kind>.json for a run folder (low-shot:
            <kind>_10pct.json, <kind>_5_per_class.json), and none for others.
        options: shots, seeds, seed (all); k, temperature (knn); penalties, max_iter (linear); the
            attributes of
            `AttentiveSettings`, `AbMILPSettings` and `ProbeTraining` (attentive; there batch_size
            is that of the network, probe_batch_size that of the probes, and teacher a run or timm
            name for that pooling), or those of
            `FinetuneSettings` and `FinetuneTraining` (finetune; train_batch_size).

    "attentive" also draws what AbMILP and [cls] look at in a few test images, beside random
    initialisation: RUN/figures/attentive_maps.png, or <out>_maps.png.

    The result's "card" says what it was measured with: protocol, configuration, commit, versions,
    fingerprints of weights and data.
    Raises ValueError where there are no labels, saying what is needed.
    """
    evaluators: dict[str, Callable[..., dict[str, Any]]] = {
        "knn": evaluate.knn,
        "linear": evaluate.linear,
        "attentive": _attentive,
        "finetune": _finetune,
    }
    if kind not in evaluators:
        raise ValueError(f"kind: expected one of {', '.join(evaluators)}, got {kind!r}")
    source = open_source(run, checkpoint, weights=weights, model_options=model_options)
    path = data if data in ("", "digits") else str(Path(data).expanduser().resolve())
    path = path or source.data
    if not path:
        raise ValueError(f"data: {run} knows no images; give data=DIR with labelled images")
    train, test, notes = open_splits(path, source)
    labels, test_labels, names = class_indices(train, test, path)
    subject = Subject(
        source.encoders,
        Labelled(train, torch.from_numpy(labels), images_fingerprint(train)),
        Labelled(test, torch.from_numpy(test_labels), images_fingerprint(test)),
        names,
        source.mean,
        source.std,
        {**source.about, "data": path},
        tuple(notes),
    )
    folder = source.folder / "eval" if source.folder else None
    features = FeatureOptions(
        pool=pool or "mean",
        batch_size=batch_size,
        device=str(choose_device(device)),
        cache_dir=folder / "features" if folder and cache else None,
        progress=progress,
    )
    if kind == "attentive" and pool:
        options["pool"] = tuple(pool.split(","))
    maps = None
    if kind == "attentive":
        options["watch"] = maps = PoolingMaps(few_of(test, MAPPED))
    result = evaluators[kind](subject, options=features, **options)
    if path == "digits":
        result["notes"].append(
            "Raw pixels already solve digits (98.6 % with a tuned classifier): "
            "only the gain over random initialisation is claimed."
        )
    result["notes"] += [note for part in (train, test) if (note := unreadable_note(part))]
    config = run_config(source.folder)
    result["card"] = result_card(subject, result, device=features.device, config=config)
    say(evaluate.format_table(result))
    label = evaluate.shots_label(str(result["settings"]["shots"]))
    file = (
        Path(out).expanduser() if out else folder and folder / f"{kind}{label and '_' + label}.json"
    )
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps(result, indent=2) + "\n")
        say(f"  with its card (protocol, configuration, commit, data): {file}")
        if maps is not None:
            place = file.parent if out or folder is None else folder.parent / "figures"
            _draw(maps, place / f"{file.stem}_maps.png", say)
    return result


def _draw(maps: PoolingMaps, file: Path, say: Say) -> None:
    """The picture of an evaluation takes the place of the one before, also where there is none."""
    if not maps.weights:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(exist_ok=True)
    attention_maps(maps.images, maps.weights, maps.grid).save(file)
    say(f"  where AbMILP and [cls] look: {file}")


def _attentive(
    subject: Subject,
    options: FeatureOptions,
    watch: PoolingMaps,
    teacher: str | Path = "",
    **settings: Any,
) -> dict[str, Any]:
    """`evaluate.attentive` with the settings of its parts under their plain names."""
    guide = _teacher(teacher, options.device) if teacher else None
    first = next(iter(subject.encoders.values()))
    if getattr(first, "cls_token", None) is None:  # a convolutional network
        settings.setdefault("pool", ("abmilp", "mean"))
    _rename(settings, "probe_batch_size", "batch_size")
    own = _take(settings, abmilp=AbMILPSettings, training=ProbeTraining)
    whole = AttentiveSettings(**own, **settings)
    result = evaluate.attentive(subject, whole, options=options, teacher=guide, watch=watch)
    result["settings"]["teacher"] = str(teacher)
    return result


def _teacher(name: str | Path, device: str) -> TokenSource:
    source = open_source(name, "last")
    encoder = next(iter(source.encoders.values()))
    return TokenSource(encoder, source.mean, source.std, device=device, attention=True)


def _finetune(subject: Subject, options: FeatureOptions, **settings: Any) -> dict[str, Any]:
    _rename(settings, "train_batch_size", "batch_size")
    own = _take(settings, training=FinetuneTraining)
    return evaluate.finetune(subject, FinetuneSettings(**own, **settings), options=options)


def _rename(settings: dict[str, Any], name: str, own: str) -> None:
    if name in settings:
        settings[own] = settings.pop(name)


def _take(settings: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """Each part made of the settings that are its own, which leave ``settings``."""
    return {
        part: make(**{f.name: settings.pop(f.name) for f in fields(make) if f.name in settings})
        for part, make in parts.items()
    }
