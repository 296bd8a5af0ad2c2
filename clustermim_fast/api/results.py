"""What lies in a run folder as numbers, read with care: a page must not fail on a broken file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from clustermim_fast.train.log import read_rows

__all__ = ["progress_rows", "read_result"]


def progress_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl that have a step, an epoch and, if any, a speed."""
    return [
        row
        for row in read_rows(folder / "metrics.jsonl")
        if {"step", "epoch"} <= row.keys()
        and all(_is_number(row.get(key, 0)) for key in ("step", "epoch", "images_per_s"))
    ]


def read_result(path: Path) -> dict[str, Any] | None:
    """The accuracies of a file that `evaluate` wrote; None for its other results.

    Raises ValueError naming the file and what is wrong with it.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    rows = result.get("rows") if isinstance(result, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"name", "accuracy_percent"} <= row.keys() for row in rows
    ):
        return None
    wrong = _wrong(result)
    if wrong:
        raise ValueError(
            f"{path}: {wrong}; measure it again with `clustermim evaluate`, or delete it"
        )
    return dict(result)


def _wrong(result: dict[str, Any]) -> str:
    """What is not of the type that the pages show; "" where all is."""
    for row in result["rows"]:
        name, interval = row["name"], row.get("interval95_percent")
        if not isinstance(name, str):
            return f"name of a row: expected text, got {json.dumps(name)}"
        for key in ("accuracy_percent", "seed_deviation_points"):
            if not _is_number(row.get(key, 0)):
                return f"{key} of {name}: expected a number, got {json.dumps(row[key])}"
        if interval is not None and not (
            isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
        ):
            return f"interval95_percent of {name}: expected two numbers, got {json.dumps(interval)}"
    if not isinstance(result.get("step", 0), int):
        return f"step: expected an integer, got {json.dumps(result['step'])}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
