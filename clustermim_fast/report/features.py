"""Pictures of what an encoder does on images without labels: attention, frequencies, neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from . import charts, pictures
from .page import ROW_TITLES
from .pictures import Column

__all__ = ["attention_chart", "attention_maps", "frequency_chart", "neighbour_sheet"]

COLOURS = (charts.BLUE, charts.GREY, charts.ORANGE)
Curves = Mapping[str, Sequence[float]]


def attention_chart(
    values: Mapping[str, Curves], titles: Mapping[str, str], patches: int
) -> Image.Image:
    """The statistics by block, a panel each. values: encoder -> statistic -> a number a block."""
    columns = 5
    rows = -(-len(titles) // columns)
    with charts.panels(columns, 15.0, 3.1 * rows + 0.4, rows) as (panels, drawn):
        for axes, (key, title) in zip(panels, titles.items(), strict=False):
            for number, (name, curves) in enumerate(values.items()):
                _by_block(axes, curves[key], name, number)
            if "entropy" in key:
                label = f"ln {patches}: all alike"
                axes.axhline(
                    math.log(patches), color=charts.GREY, linestyle=":", linewidth=1, label=label
                )
            elif axes.dataLim.ymax > 30 * axes.dataLim.minposy:
                axes.set_yscale("log")
            else:
                axes.set_ylim(0, 1.06 * axes.dataLim.ymax)
            axes.set_title(title, fontsize=9)
        for axes in panels[-columns:]:
            axes.set_xlabel("block", fontsize=9)
        charts.legend_of_all(panels)
    return drawn[0]


def _by_block(axes: Axes, values: Sequence[float], name: str, number: int) -> None:
    blocks = range(1, len(values) + 1)
    style = charts.line(values) | {"color": COLOURS[number % len(COLOURS)]}
    # An odds ratio of a [cls] that sees only itself is infinite: there is no point to draw.
    finite = [value if math.isfinite(value) else math.nan for value in values]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(blocks, finite, label=ROW_TITLES.get(name, name), **style)


def frequency_chart(
    amplitudes: Mapping[str, Sequence[Sequence[float]]], variances: Curves
) -> Image.Image:
    """Log amplitude by frequency of each block, a panel an encoder; beside them the variance.

    amplitudes: encoder -> block -> values at evenly spaced frequencies 0 .. pi.
    """
    with charts.panels(len(amplitudes) + 1, 5.0 * len(amplitudes) + 4.2, 3.8) as (panels, drawn):
        for axes, (name, blocks) in zip(panels, amplitudes.items(), strict=False):
            for number, curve in enumerate(blocks):
                shade = 0.15 + 0.75 * number / max(1, len(blocks) - 1)
                ends = number in (0, len(blocks) - 1)
                label = f"block {number + 1}" if ends else None
                frequencies = np.linspace(0, 1, len(curve))
                axes.plot(frequencies, curve, color=_shade(shade), linewidth=1.6, label=label)
            axes.set_title(ROW_TITLES.get(name, name), fontsize=10)
            axes.set_xlabel("frequency, π")
            axes.set_ylabel("ln amplitude, less that at 0")
            axes.legend(frameon=False, fontsize=8)
        low, high = zip(*(axes.get_ylim() for axes in panels[:-1]), strict=True)
        for axes in panels[:-1]:
            axes.set_ylim(min(low), max(high))
        for number, (name, values) in enumerate(variances.items()):
            _by_block(panels[-1], values, name, number)
        panels[-1].set_title("variance of features over positions", fontsize=10)
        panels[-1].set_xlabel("block")
        panels[-1].set_ylim(bottom=0)
        panels[-1].legend(frameon=False, fontsize=8)
    return drawn[0]


def _shade(share: float) -> tuple[float, float, float]:
    """From a light to a dark blue."""
    light, dark = (0.72, 0.84, 0.95), (0.05, 0.20, 0.42)
    red, green, blue = (a + share * (b - a) for a, b in zip(light, dark, strict=True))
    return red, green, blue


def attention_maps(
    images: Tensor, weights: Mapping[str, Tensor], grid: tuple[int, int]
) -> Image.Image:
    """What a pooling looks at: each image, and beside it a map for each entry of ``weights``.

    images uint8 [N, 3, H, W]; weights: title -> attention over the patches [N, L], not negative,
    L = rows * columns of ``grid``, row-major. Each map goes from 0 to its own largest weight.
    Raises ValueError where shapes disagree.
    """
    rows, columns = grid
    for title, values in weights.items():
        if values.shape != (len(images), rows * columns):
            raise ValueError(
                f"weights: expected {[len(images), rows * columns]} for {title!r}, "
                f"got {list(values.shape)}"
            )
    pixels = images.float().cpu() / 255
    maps = [Column(t, pictures.heat(pixels, w.cpu(), grid)) for t, w in weights.items()]
    return pictures.columns_of_images([Column("image", pixels), *maps], side=170)


def neighbour_sheet(queries: Tensor, neighbours: Tensor) -> Image.Image:
    """Images uint8 [Q, 3, H, W], each on a line before its neighbours [Q, K, 3, H, W]."""
    columns = [Column("image", queries.float() / 255)]
    columns += [
        Column(str(place + 1), neighbours[:, place].float() / 255)
        for place in range(neighbours.shape[1])
    ]
    return pictures.columns_of_images(columns, side=96)
