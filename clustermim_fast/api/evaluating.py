"""`evaluate` for a run folder, an exported encoder or a timm name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clustermim_fast import evaluate
from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.evaluate import FeatureOptions, Labelled, Subject
from clustermim_fast.train.prepare import choose_device

from .fingerprint import images_fingerprint
from .sources import class_indices, open_source, open_splits, unreadable_note

__all__ = ["evaluate_run"]

Say = Callable[[str], None]


def evaluate_run(
    kind: str,
    run: str | Path,
    *,
    data: str = "",
    checkpoint: str = "last",
    pool: str = "mean",
    batch_size: int = 256,
    device: str = "auto",
    cache: bool = True,
    progress: bool = False,
    say: Say = print,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate frozen features by ``kind`` "knn" or "linear"; prints a table, returns the result.

    Args:
        run: a run folder, a folder written by `export`, or a timm name.
        data: labelled images; "" takes the run's own.
        checkpoint: of a run folder.
        pool: "mean" of the patch tokens, or "cls".
        cache: keep features in RUN/eval/features for the next evaluation.
        options: k, temperature (knn); penalties, max_iter, seed (linear).

    Writes RUN/eval/<kind>.json for a run folder.
    Raises ValueError where there are no labels, saying what is needed.
    """
    evaluators: dict[str, Callable[..., dict[str, Any]]] = {
        "knn": evaluate.knn,
        "linear": evaluate.linear,
    }
    if kind not in evaluators:
        raise ValueError(f"kind: expected one of {', '.join(evaluators)}, got {kind!r}")
    source = open_source(run, checkpoint)
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
        pool=pool,
        batch_size=batch_size,
        device=str(choose_device(device)),
        cache_dir=folder / "features" if folder and cache else None,
        progress=progress,
    )
    result = evaluators[kind](subject, options=features, **options)
    if path == "digits":
        result["notes"].append(
            "Raw pixels already solve digits (98.6 % with a tuned classifier): "
            "only the gain over random initialisation is claimed."
        )
    result["notes"] += [note for part in (train, test) if (note := unreadable_note(part))]
    if folder:
        folder.mkdir(exist_ok=True)
        write_text_atomically(folder / f"{kind}.json", json.dumps(result, indent=2) + "\n")
    say(evaluate.format_table(result))
    return result
