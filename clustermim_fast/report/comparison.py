"""Several runs side by side on one offline page."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from . import charts
from .page import LOOKS, flat, png, write_page
from .results import (
    Column,
    ComparedRun,
    Line,
    lines_of,
    protocol_notes,
    result_columns,
)

__all__ = ["write_comparison"]

COLOURS = (charts.BLUE, charts.ORANGE, "#3f8f5b", "#8a5fb0", "#b8a13a", charts.RED, "#5aa7a7")
# Pictures of a run's report that stand side by side, where a run has them.
PICTURES = {
    "predictions_1": "What each model sees and predicts",
    "spectra": "Spectra of images and reconstructions",
    "token_maps_1": "Token maps",
    **{name: LOOKS[name][0] for name in ("attentive_maps", "attention", "neighbours", "frequency")},
    "codebook": "Codebooks",
}
# What tells where a run is and how fast it went, not what it is.
NOT_COMPARED = ("out", "resume", "efficiency.", "log.")
ABSENT = "–"


def write_comparison(runs: Sequence[ComparedRun], page: Path) -> Path:
    """Write ``page``: results, loss curves, differing settings and pictures of all ``runs``."""
    columns, lines = result_columns(runs), list(lines_of(runs))
    # One command measures all poolings of an evaluation that a run has nothing of.
    missing = dict.fromkeys(
        (
            (column if column.stem in run.evaluations else Column(column.stem, "")).command(run),
            run.name,
            column.title,
        )
        for run in runs
        for column in columns
        if run.can_have(column)
        and not any(line.run is run and column in line.cells for line in lines)
    )
    write_page(
        page,
        "comparison.html.j2",
        title=f"{len(runs)} runs compared",
        runs=runs,
        columns=columns,
        lines=lines,
        budgets={run.name: _budget(run) for run in runs},
        missing=list(missing),
        unlabelled=[run.name for run in runs if not run.labelled],
        notes=list(protocol_notes(runs)),
        charts=[_embedded(name, caption, image) for name, caption, image in _charts(runs)],
        accuracy=_accuracy(columns, lines),
        differing=list(differing_settings(runs)),
        pictures=list(_pictures(runs)),
        absent=ABSENT,
    )
    return page


def _budget(run: ComparedRun) -> dict[str, str]:
    optim = run.config.get("optim", {})
    done, seen, seconds = run.last.get("epoch"), run.images_seen, run.seconds
    epochs = optim.get("epochs")
    if done and optim.get("steps"):
        epochs = done * optim["steps"] / run.last["step"]
    return {
        "epochs": ABSENT
        if done is None
        else f"{done:.4g}"
        if epochs is None or done >= epochs
        else f"{done:.3g} of {epochs:.4g}",
        "images": ABSENT if seen is None else f"{seen:,}",
        "seconds": ABSENT if seconds is None else f"{seconds:,.0f}",
    }


def _charts(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, str, Image.Image]]:
    """One chart a kind of loss: nats and squared errors have no axis in common."""
    keys: dict[str, list[tuple[int, ComparedRun]]] = {}
    for number, run in enumerate(runs):
        for key in _losses(run):
            keys.setdefault(key, []).append((number, run))
    for key, members in keys.items():
        nats = key == "cross-entropy"
        with charts.chart(6.4, 3.9) as (axes, drawn):
            for number, run in members:
                name = _losses(run)[key]
                colour = COLOURS[number % len(COLOURS)]
                style = charts.line(run.metrics)
                lines = [dict(line) for line in run.metrics]
                axes.plot(*charts.series(lines, name), color=colour, label=run.name, **style)
                floor = run.last.get("loss_floor_lnK")
                if nats and floor:
                    axes.axhline(floor, color=colour, linestyle="--", linewidth=0.9, alpha=0.7)
            axes.set_xlabel("epoch")
            axes.set_ylabel("cross-entropy, nats" if nats else key)
            charts.legend(axes)
        caption = (
            "Training loss on masked patches; dashed: ln K, what a uniform guess would get. Losses "
            "of different K do not compare."
            if nats
            else "Training loss. It compares only between runs with the same targets."
        )
        yield key, caption, drawn[0]


def _losses(run: ComparedRun) -> dict[str, str]:
    """Title of a loss -> its key in the metrics."""
    terms = sorted({key for line in run.metrics for key in line if key.endswith("_loss")})
    tokens = any("loss_floor_lnK" in line for line in run.metrics)
    if terms:
        titles = {"token_loss": "cross-entropy"}
        return {titles.get(term, term.replace("_", " ")): term for term in terms}
    if not run.metrics:
        return {}
    return {"cross-entropy": "loss"} if tokens else {"pixel loss": "loss"}


def _accuracy(columns: Sequence[Column], lines: Sequence[Line]) -> dict[str, Any] | None:
    """Accuracies with their intervals, a panel a column and a bar a line."""
    shown = [column for column in columns if any(column in line.cells for line in lines)]
    if not shown:
        return None
    colours = iter(COLOURS * len(lines))
    colour = [next(colours) if line.run else "#b3bac5" for line in lines]
    size = 3.4 + 2.6 * len(shown), 1.2 + 0.34 * len(lines)
    with charts.panels(len(shown), *size) as (panels, drawn):
        for axes, column in zip(panels, shown, strict=True):
            for place, line in enumerate(lines):
                cell = line.cells.get(column)
                if cell is None:
                    said = " not measured" if line.run and line.run.can_have(column) else ""
                    axes.annotate(said, (0, place), fontsize=8, color=charts.GREY, va="center")
                    continue
                axes.barh(place, cell.accuracy, height=0.7, color=colour[place])
                if cell.interval:
                    low, high = cell.interval
                    spread = [[max(0.0, cell.accuracy - low)], [max(0.0, high - cell.accuracy)]]
                    axes.errorbar(cell.accuracy, place, xerr=spread, color="#20242b", linewidth=1)
            names = [_short(line) for line in lines] if axes is panels[0] else [""] * len(lines)
            axes.set_yticks(range(len(lines)), names, fontsize=8)
            axes.set_ylim(len(lines) - 0.4, -0.6)
            axes.set_xlim(left=0)
            axes.grid(False, axis="y")
            axes.set_title(f"{column.title}\n{column.subtitle}".strip(), fontsize=9)
            axes.set_xlabel("accuracy, %", fontsize=9)
    caption = "Accuracy on the test images with its 95 % interval."
    return _embedded("accuracy", caption, drawn[0])


def _short(line: Line) -> str:
    whose = "" if line.run else line.detail.rpartition("; ")[2]
    name = f"{line.title} ({whose})" if whose else line.title
    return name if len(name) <= 40 else f"{name[:39]}…"


def differing_settings(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, list[str]]]:
    """(key, value a run) of the settings that are not the same in all runs."""
    every = [dict(flat(run.config)) for run in runs]
    for key in dict.fromkeys(key for settings in every for key in settings):
        values = [settings.get(key, ABSENT) for settings in every]
        if len(set(values)) > 1 and not key.startswith(NOT_COMPARED):
            yield key, values


def _pictures(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name, title in PICTURES.items():
        found = [(run.name, run.figures[name]) for run in runs if name in run.figures]
        if found:
            embedded = []
            for run, path in found:
                with Image.open(path) as image:
                    embedded.append(_embedded(run, run, image))
            yield title, embedded


def _embedded(name: str, caption: str, image: Image.Image) -> dict[str, Any]:
    return {
        "name": name,
        "caption": caption,
        "width": image.width,
        "height": image.height,
        "data": base64.b64encode(png(image)).decode(),
    }
