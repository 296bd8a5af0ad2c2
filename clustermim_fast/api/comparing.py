"""Run folders side by side: reads what is in them, runs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clustermim_fast.encoders import is_convolutional
from clustermim_fast.image_files import has_classes
from clustermim_fast.report import ComparedRun, write_comparison

from .results import progress_rows, read_result

__all__ = ["compare_runs"]

Say = Callable[[str], None]


def compare_runs(
    runs: Sequence[str | Path], *, out: str | Path = "comparison.html", say: Say = print
) -> Path:
    """One offline page on several run folders, from the files that are in them.

    It shows a table of runs by evaluations (RUN/eval/*.json) with intervals and budgets, the
    random initialisation and raw pixels beside them, loss curves, the settings that differ, and
    the pictures of the runs' reports side by side. What was not measured is shown as missing, with
    the command that measures it. Neither weights nor images are opened; whether a run's images
    have classes is seen from their folders.

    Args:
        runs: run folders, at least one; their order is the page's.
        out: the page, a .html file.

    Raises:
        ValueError: a folder without config.json, a broken result, or a page of another ending.
    """
    target = Path(out).expanduser()
    if target.suffix not in (".html", ".htm"):
        raise ValueError(f"out: expected a file name ending in .html, got {str(out)!r}")
    if not runs:
        raise ValueError("runs: expected at least one run folder, got none")
    folders = [Path(run).expanduser() for run in runs]
    names = _names(folders)
    compared = [_read(folder, name) for folder, name in zip(folders, names, strict=True)]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(compared, target)
    say(f"{target}: {', '.join(names)}")
    return target


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many more as tell all of them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(folder for folder, own in zip(folders, parts, strict=True)
                     if parts.count(own) > 1)  # fmt: skip
        raise ValueError(f"runs: {twice} is given twice")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read(folder: Path, name: str) -> ComparedRun:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"runs: {folder} is no run folder: it has no config.json")
    config = _json(file)
    groups = ("data", "model", "optim")
    if not isinstance(config, dict) or not all(
        isinstance(config.get(group, {}), dict) for group in groups
    ):
        raise ValueError(f"runs: {file} is not the config of a run")
    return ComparedRun(
        name=name,
        path=str(folder),
        config=config,
        metrics=progress_rows(folder),
        evaluations={
            path.stem: result
            for path in sorted((folder / "eval").glob("*.json"))
            if (result := read_result(path)) is not None
        },
        figures={path.stem: path for path in sorted((folder / "figures").glob("*.png"))},
        labelled=has_classes(str(config.get("data", {}).get("path") or "")) is not False,
        convolutional=_convolutional(config.get("model", {}).get("encoder", "")),
    )


def _convolutional(encoder: str) -> bool:
    try:
        return is_convolutional(encoder)
    except ValueError:  # a name that this timm does not have: the page needs none
        return False


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
