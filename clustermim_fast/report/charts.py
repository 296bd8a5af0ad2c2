"""Curves and bars of the report: matplotlib without a display, one look for all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from clustermim_fast.tokenizers import KMeansReport

__all__ = [
    "Perplexity",
    "accuracy_curve",
    "cluster_sizes",
    "evaluation_curve",
    "inertia_curve",
    "legend_of_all",
    "loss_curve",
    "usage",
    "usage_chart",
]

BLUE, ORANGE, GREY, RED = "#2a6fb0", "#d9822b", "#8a8f98", "#d03030"
Perplexity = tuple[float, int]


@contextmanager
def chart(width: float = 5.2, height: float = 3.5) -> Iterator[tuple[Axes, list[Image.Image]]]:
    """An empty chart; the finished picture is put into the list."""
    with panels(1, width, height) as ((axes,), pictures):
        yield axes, pictures


@contextmanager
def panels(
    columns: int, width: float, height: float, rows: int = 1
) -> Iterator[tuple[list[Axes], list[Image.Image]]]:
    """Empty charts side by side, in rows; the finished picture is put into the list."""
    # A Figure of our own, without pyplot: no global state, no display, nothing to close.
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    every = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e8eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors="#464a52", labelsize=9)
    pictures: list[Image.Image] = []
    yield every, pictures
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))


def series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(epoch, value) of the lines that hold ``key`` as a finite number."""
    lines = [line for line in metrics if isinstance(line.get(key), (int, float))]
    lines = [line for line in lines if math.isfinite(line[key])]
    return [float(line["epoch"]) for line in lines], [float(line[key]) for line in lines]


def legend(axes: Axes) -> None:
    """Above the plot, where it hides nothing."""
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(-0.02, 0.99))


def legend_of_all(panels: Sequence[Axes]) -> None:
    """One legend for all panels, above them: each name once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    figure = cast("Figure", panels[0].figure)
    figure.legend(
        found.values(), found.keys(), frameon=False, fontsize=10, ncols=len(found),
        loc="outside upper left",
    )  # fmt: skip


def line(metrics: Sequence[Any]) -> dict[str, Any]:
    """A line, with its points where there are few: one point alone draws no line."""
    return {"linewidth": 1.8, "marker": "o" if len(metrics) < 12 else "", "markersize": 4}


def loss_curve(
    metrics: Sequence[dict[str, Any]], num_clusters: int | None, perplexity: float | None = None
) -> Image.Image:
    """Loss by epoch; with ``num_clusters`` the line of blind guessing, ln K, is drawn beside it.

    ``perplexity`` of the tokens adds what knowing only their frequencies reaches.
    """
    with chart() as (axes, pictures):
        # Of a loss that is a sum, its terms: only the one of the tokens compares with ln K.
        terms = sorted({key for row in metrics for key in row if key.endswith("_loss")})
        for key, colour in zip(terms or ["loss"], (BLUE, ORANGE), strict=False):
            label = key.replace("_", " ")
            axes.plot(*series(metrics, key), color=colour, **line(metrics), label=label)
        if num_clusters:
            floor = math.log(num_clusters)
            label = f"ln K = {floor:.2f} (uniform guess, K = {num_clusters})"
            axes.axhline(floor, color=GREY, linestyle="--", linewidth=1.2, label=label)
            if perplexity is not None and perplexity >= 1:
                entropy = math.log(perplexity)
                label = f"entropy of the tokens = {entropy:.2f} (frequencies alone)"
                axes.axhline(entropy, color=GREY, linestyle=":", linewidth=1.2, label=label)
        axes.set_xlabel("epoch")
        kind = "cross-entropy, nats" if num_clusters else "mean squared error"
        axes.set_ylabel("loss" if set(terms) - {"token_loss"} else kind)  # terms of several kinds
        legend(axes)
    return pictures[0]


def accuracy_curve(
    metrics: Sequence[dict[str, Any]], key: str, chance: float, majority: float | None
) -> Image.Image:
    """Accuracy on masked patches by epoch, beside chance and the commonest token's share."""
    with chart() as (axes, pictures):
        epochs, values = series(metrics, key)
        percent = [100 * value for value in values]
        axes.plot(epochs, percent, color=ORANGE, **line(metrics), label="masked patches")
        axes.axhline(100 * chance, color=GREY, linestyle="--", linewidth=1.2, label="chance, 1 / K")
        if majority is not None:
            label = "always the commonest token"
            axes.axhline(100 * majority, color=GREY, linestyle=":", linewidth=1.2, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel("token accuracy, %")
        legend(axes)
    return pictures[0]


def evaluation_curve(rows: Sequence[dict[str, Any]]) -> Image.Image:
    """kNN accuracy with its interval where there is one, and RankMe, by epoch."""
    with chart() as (axes, pictures):
        epochs, ranks = series(rows, "rankme")
        known, accuracy = series(rows, "knn_percent")
        right = axes.twinx() if known else axes
        if known:
            low, high = series(rows, "knn_low")[1], series(rows, "knn_high")[1]
            axes.plot(known, accuracy, color=BLUE, **line(rows), label="kNN")
            axes.fill_between(known, low, high, color=BLUE, alpha=0.15, linewidth=0)
            axes.set_ylabel("kNN accuracy, %")
            axes.plot([], [], color=ORANGE, label="RankMe")  # for the legend; drawn on the right
            right.spines[["top", "left"]].set_visible(False)
        right.plot(epochs, ranks, color=ORANGE, **line(rows), label="RankMe")
        right.set_ylabel("RankMe")
        axes.set_xlabel("epoch")
        legend(axes)
    return pictures[0]


def usage(counts: NDArray[np.int64]) -> Perplexity:
    """Perplexity (exp of the entropy) of token counts [K], and how many tokens are never used."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-(share * np.log(share)).sum())), int((counts == 0).sum())


def usage_chart(counts: NDArray[np.int64]) -> Image.Image:
    """Share of patches by token, most used first; on a log scale where they differ much."""
    perplexity, dead = usage(counts)
    label = f"perplexity {perplexity:.1f} of {len(counts)}, {dead} unused"
    return _share_bars(counts, label, "token, most used first")


def cluster_sizes(report: KMeansReport) -> Image.Image:
    """Share of the fit's patches by cluster, largest first."""
    counts = np.array(report.counts)
    share = counts / max(1.0, counts.sum())
    imbalance = len(counts) * float(np.square(share).sum())
    label = f"imbalance {imbalance:.2f} (1: all equal), {report.unused} empty"
    return _share_bars(counts, label, "cluster, largest first")


def _share_bars(
    counts: NDArray[np.int64] | NDArray[np.float64], label: str, xlabel: str
) -> Image.Image:
    share = np.sort(counts)[::-1] / max(1, counts.sum()) * 100
    equal = f"equal sizes, {100 / len(share):.2g} %"
    with chart() as (axes, pictures):
        # White edges keep few bars apart; of hundreds they would hide the colour.
        edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.3} if len(share) <= 200 else {}
        axes.bar(np.arange(len(share)), share, width=1.0, color=BLUE, label=label, **edge)
        axes.axhline(100 / len(share), color=GREY, linestyle="--", linewidth=1.2, label=equal)
        used = share[share > 0]
        if len(used) and used[0] > 30 * used[-1]:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("share of patches, %")
        legend(axes)
    return pictures[0]


def inertia_curve(report: KMeansReport) -> Image.Image:
    """Mean cost of a patch by iteration of the tokenizer's fit, and where clusters were re-seeded.

    A step's cost is that before its update, so that of the final centroids stands beside them.
    """
    steps, rows = report.iterations, max(1, report.num_rows)
    cost = [step.inertia / rows for step in steps]
    cosine = report.metric == "cosine"
    name = "mean of 1 - cosine" if cosine else "mean squared distance"
    seeded = [i for i, step in enumerate(steps) if step.empty]
    with chart() as (axes, pictures):
        numbers = np.arange(1, len(steps) + 1)
        axes.plot(numbers, cost, color=BLUE, **line(steps), label=f"{name} to the centroids")
        if seeded:
            axes.scatter(
                numbers[seeded],
                [cost[i] for i in seeded],
                color=ORANGE,
                s=30,
                zorder=3,
                label=f"{report.reseeded} empty or starved clusters re-seeded",
            )
        if report.exact:
            final = report.inertia / rows
            label = f"final centroids, {final:.4g}"
            axes.axhline(final, color=GREY, linestyle="--", linewidth=1.2, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("iteration" if report.algorithm == "lloyd" else "pass over the images")
        axes.set_ylabel(name)
        legend(axes)
    return pictures[0]
