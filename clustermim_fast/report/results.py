"""The results of several runs as one table: what was measured, how, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .page import KIND_TITLES, ROW_TITLES, flat

__all__ = [
    "Cell",
    "Column",
    "ComparedRun",
    "Line",
    "evaluation_title",
    "lines_of",
    "protocol_notes",
    "result_columns",
]

ALWAYS = ("knn", "linear", "attentive")
POOLS = {
    "mean": "mean of patches",
    "cls": "[cls]",
    "abmilp": "AbMILP",
    "map": "learned query",
}
OF_CLS = ("cls", "attn_")
OF_A_RUN = "pretrained"
# What of a result has to agree before two numbers of one column may be compared.
PROTOCOL = ("data", "train_images", "test_images", "classes", "settings")


@dataclass(frozen=True)
class ComparedRun:
    """A run folder as the page needs it; any part may be empty.

    Attributes:
        name: short and unlike the others'; path: as commands need it.
        config: the resolved settings, nested dicts.
        metrics: the lines of metrics.jsonl.
        evaluations: what `evaluate` returned, by the name of its file.
        figures: PNG files of the run's report, by name.
        labelled: its images have classes, or nobody knows.
        convolutional: its network has no [cls].
    """

    name: str
    path: str
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = ()
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    figures: Mapping[str, Path] = field(default_factory=dict)
    labelled: bool = True
    convolutional: bool = False

    def can_have(self, column: Column) -> bool:
        """Whether its images have labels, and its network has what the evaluation pools."""
        return self.labelled and not (self.convolutional and column.pool.startswith(OF_CLS))

    @property
    def last(self) -> Mapping[str, Any]:
        """The last line of progress."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def images_seen(self) -> int | None:
        """Images in all forward passes, each time that one was seen; None where nothing is."""
        if "images_seen" in self.last:
            return int(self.last["images_seen"])
        optim = self.config.get("optim", {})  # of a run that began before the line said it
        if "step" in self.last and "batch_size" in optim:
            return int(self.last["step"] * optim["batch_size"] * optim.get("accumulate", 1))
        return None

    @property
    def seconds(self) -> float | None:
        """Seconds of training: each interval's images by its images a second."""
        step, images = int(self.last.get("step", 0)), self.images_seen
        if not step or not images:
            return None
        total, before = 0.0, 0
        for line in self.metrics:
            if line.get("images_per_s"):
                total += (line["step"] - before) * images / step / line["images_per_s"]
            before = line["step"]
        return total


@dataclass(frozen=True)
class Column:
    """One evaluation: the file's name and how tokens were pooled."""

    stem: str
    pool: str

    @property
    def title(self) -> str:
        """The name of the evaluation, and how many labels it had where those were few."""
        kind, shots = self._kind_and_shots()
        few = f", {shots}" if shots.endswith("%") else f", {shots} a class"
        return KIND_TITLES.get(kind, kind.replace("_", " ")) + (few if shots else "")

    @property
    def subtitle(self) -> str:
        """The pooling in words."""
        return POOLS.get(self.pool, self.pool)

    def command(self, run: ComparedRun) -> str:
        """What measures it."""
        kind, shots = self._kind_and_shots()
        pool = f" pool={self.pool}" if self.pool not in ("", "mean") else ""
        return f"clustermim evaluate {kind} {run.path}{pool}{shots and f' shots={shots}'}"

    def _kind_and_shots(self) -> tuple[str, str]:
        """("knn", "10%") of knn_10pct, ("knn", "5") of knn_5_per_class, ("knn", "") of knn."""
        found = re.fullmatch(r"([a-z]+)_(?:([\d.]+)(pct)|(\d+)_per_class)", self.stem)
        if not found:
            return self.stem, ""
        return found[1], f"{found[2]}%" if found[3] else found[4]


def evaluation_title(stem: str) -> str:
    """What a file of an evaluation holds: "k nearest neighbours, 10%" of knn_10pct."""
    return Column(stem, "").title


@dataclass(frozen=True)
class Cell:
    """An accuracy in percent, its 95 % interval, and a remark on it ("" for none)."""

    accuracy: float
    interval: tuple[float, float] | None
    remark: str = ""

    @property
    def text(self) -> str:
        """The number as the table shows it."""
        return f"{self.accuracy:.1f}"


@dataclass(frozen=True)
class Line:
    """A line of the table: a run, or something that runs are compared with."""

    title: str
    detail: str
    cells: Mapping[Column, Cell]
    run: ComparedRun | None = None


def result_columns(runs: Sequence[ComparedRun]) -> list[Column]:
    """kNN, linear and attentive where a run has labels, measured or not; then what else was."""
    always = ALWAYS if any(run.labelled for run in runs) else ()
    found: dict[str, dict[str, None]] = {stem: {} for stem in always}
    for run in runs:
        for stem, result in run.evaluations.items():
            for row in result["rows"]:
                found.setdefault(stem, {})[_pool(result, row)] = None
    return [Column(stem, pool) for stem, pools in found.items() for pool in pools or {"": None}]


def lines_of(runs: Sequence[ComparedRun]) -> Iterator[Line]:
    """A line a run, then their random initialisations and raw pixels; equal ones share a line."""
    for run in runs:
        yield Line(run.name, _network(run), _cells(run, OF_A_RUN), run)
    results = [result for run in runs for result in run.evaluations.values()]
    names = dict.fromkeys(row["name"] for result in results for row in result["rows"])
    others = [name for name in ("random_init", "raw_pixels") if name in names]
    others += [name for name in names if name not in (OF_A_RUN, *others)]
    if not others and any(run.labelled for run in runs):
        others = ["random_init"]
    for name in others:
        yield from _baselines(runs, name)


def _baselines(runs: Sequence[ComparedRun], name: str) -> Iterator[Line]:
    shared: list[tuple[str, list[str], dict[Column, Cell]]] = []
    for run in runs:
        network = _network(run) if name == "random_init" else ""
        cells = _cells(run, name)
        for other, names, values in shared:
            common = values.keys() & cells.keys()
            if other == network and all(values[c].text == cells[c].text for c in common):
                names.append(run.name)
                values.update({column: values.get(column, cell) for column, cell in cells.items()})
                break
        else:
            shared.append((network, [run.name], cells))
    for network, names, values in shared:
        of = "" if len(shared) == 1 else f"of {', '.join(names)}"
        detail = "; ".join(part for part in (network, of) if part)
        yield Line(ROW_TITLES.get(name, name.replace("_", " ")), detail, values)


def _cells(run: ComparedRun, name: str) -> dict[Column, Cell]:
    cells = {}
    for stem, result in run.evaluations.items():
        for row in result["rows"]:
            if row["name"] == name:
                interval = row.get("interval95_percent")
                cells[Column(stem, _pool(result, row))] = Cell(
                    float(row["accuracy_percent"]),
                    (float(interval[0]), float(interval[1])) if interval else None,
                    _remark(run, result, row),
                )
    return cells


def _pool(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return str(row.get("pooling", result.get("pool", "")))


def _remark(run: ComparedRun, result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The spread over seeds, and the step of a checkpoint that is not the run's last."""
    parts = []
    if "seed_deviation_points" in row:
        parts.append(f"± {row['seed_deviation_points']:.1f} between seeds")
    step, last = result.get("step"), run.last.get("step")
    if row["name"] == OF_A_RUN and step is not None and last is not None and step != last:
        parts.append(f"at step {step:,}")
    return ", ".join(parts)


def _network(run: ComparedRun) -> str:
    model = run.config.get("model", {})
    width = f", width {model['embed_dim']}" if model.get("embed_dim") else ""
    depth = f", depth {model['depth']}" if model.get("depth") else ""
    return f"{model.get('encoder', '')}{width}{depth}"


def protocol_notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """A sentence for each evaluation that was not done alike in all runs, naming what differs."""
    for stem in dict.fromkeys(stem for run in runs for stem in run.evaluations):
        protocols = {
            run.name: dict(flat({key: result[key] for key in PROTOCOL if key in result}))
            for run in runs
            if (result := run.evaluations.get(stem)) is not None
        }
        keys = dict.fromkeys(key for protocol in protocols.values() for key in protocol)
        for key in keys:
            values = {name: protocol.get(key, "not said") for name, protocol in protocols.items()}
            if len(set(values.values())) > 1:
                told = "; ".join(f"{name}: {value}" for name, value in values.items())
                yield f"{Column(stem, '').title}: {key.removeprefix('settings.')} differs ({told})."
