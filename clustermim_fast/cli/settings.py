"""key=value settings of the small commands: what they are read as."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def to_bool(text: str) -> bool:
    """yes/no, true/false, on/off, 1/0."""
    if text.lower() not in ("yes", "true", "on", "1", "no", "false", "off", "0"):
        raise ValueError("expected yes or no")
    return text.lower() in ("yes", "true", "on", "1")


def to_size(text: str) -> tuple[int, int]:
    """Pixels: one side of a square, or height x width."""
    sides = [int(part) for part in text.lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError("expected 224 or 224x224")
    return sides[0], sides[-1]


def to_numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    return tuple(float(part) for part in text.split(","))


def to_seed(text: str) -> int:
    """What numpy's and torch's generators take."""
    seed = int(text)
    if not 0 <= seed < 2**32:
        raise ValueError("expected 0 to 2**32 - 1")
    return seed


CHOICE_KEYS: dict[str, Callable[[str], Any]] = {
    "data": str,
    "tokenizers": str,
    "out": str,
    "images": int,
    "img_size": to_size,
    "split": str,
    "batch_size": int,
    "device": str,
    "eval_crop": float,
}
TCAS_KEYS: dict[str, Callable[[str], Any]] = {
    "variant": str,
    "rows": str,
    "columns": str,
    "pairs": str,
    "token_weight": str,
    "balance_classes": to_bool,
}
# What each setting of `evaluate` is read as.
EVALUATE_KEYS: dict[str, Callable[[str], Any]] = {
    "data": str,
    "checkpoint": str,
    "weights": str,
    "pool": str,
    "batch_size": int,
    "device": str,
    "cache": to_bool,
    "out": str,
}
REPEATS: dict[str, Callable[[str], Any]] = {"shots": str, "seeds": int, "seed": to_seed}
KIND_KEYS: dict[str, dict[str, Callable[[str], Any]]] = {
    "knn": {"k": int, "temperature": float, **REPEATS},
    "linear": {"penalties": to_numbers, "max_iter": int, **REPEATS},
    "attentive": {
        **REPEATS,
        "learning_rates": to_numbers,
        "epochs": int,
        "warmup_epochs": float,
        "probe_batch_size": int,
        "batch_norm": to_bool,
        "optimizer": str,
        "weight_decay": float,
        "held_out": float,
        "layer": int,
        "norm": to_bool,
        "teacher": str,
        "content": str,
        "attention": str,
        "depth": int,
        "activation": str,
        "condition": str,
        "cache_dtype": str,
        "memory_gib": float,
        "on_disk": to_bool,
    },
    "finetune": {
        **REPEATS,
        "learning_rates": to_numbers,
        "epochs": int,
        "warmup_epochs": float,
        "train_batch_size": int,
        "layer_decay": float,
        "weight_decay": float,
        "mixup": float,
        "cutmix": float,
        "label_smoothing": float,
        "ema_decay": float,
        "crop_scale": to_numbers,
        "flip": to_bool,
        "baseline": to_bool,
        "held_out": float,
    },
}


def read_settings(texts: Sequence[str]) -> dict[str, str]:
    """["a=1", "b.c=x"] -> {"a": "1", "b.c": "x"}; ValueError for anything else, or a key twice."""
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.removeprefix("--")
        if not equals or not key:
            raise ValueError(f"expected key=value, got {text!r}")
        if key in settings:
            raise ValueError(f"{key} is given twice: {settings[key]!r} and {value!r}")
        settings[key] = value
    return settings


def subject_of(run: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """RUN and the settings after it; model=NAME stands for RUN at any place."""
    if "=" not in run or Path(run).exists():
        return run, list(texts)
    every = [run, *texts]
    models = [text.partition("=")[2] for text in every if text.startswith("model=")]
    if len(models) != 1:
        raise ValueError(f"expected RUN or model=NAME before the settings, got {run!r}")
    return models[0], [text for text in every if not text.startswith("model=")]


def convert(
    settings: dict[str, str], known: dict[str, Callable[[str], Any]], command: str
) -> dict[str, Any]:
    """Settings of a small command by the types it knows; an unknown key names near misses."""
    values = {}
    for key, text in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"unknown setting {key!r} of {command}; {hint}")
        try:
            values[key] = known[key](text)
        except ValueError as error:
            raise ValueError(f"{key}: cannot read {text!r} ({error})") from error
    return values
