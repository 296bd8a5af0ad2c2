"""Tokenizers side by side: a ranked table as text, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import FuncFormatter
from PIL import Image

from . import charts

__all__ = ["Scored", "ranking_picture", "ranking_table"]

COLOURS = (charts.BLUE, charts.ORANGE, "#3f8f5b", "#8a5fb0", charts.GREY, charts.RED)


@dataclass(frozen=True)
class Scored:
    """One tokenizer of a ranking.

    Attributes:
        name: as in the table; family: all that it is but K, which lines of the picture share.
        tokens: K; score: what the ranking goes by; columns: the other numbers, by title.
    """

    name: str
    family: str
    tokens: int
    score: float
    columns: dict[str, float | int]


def ranking_table(rows: Sequence[Scored], score: str) -> str:
    """Lines of text, in the order of ``rows``; ``score`` is the title of the ranked column."""
    titles = ["", "tokenizer", "kind", "K", score, *rows[0].columns]
    lines = [
        [str(place), row.name, row.family, str(row.tokens), _text(row.score)]
        + [_text(value) for value in row.columns.values()]
        for place, row in enumerate(rows, 1)
    ]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    left = {1, 2}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (titles, *lines)
    )


def _text(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def ranking_picture(rows: Sequence[Scored], label: str) -> Image.Image:
    """Bars in the order of ``rows``, and beside them the score by K, a line a family."""
    families = list(dict.fromkeys(row.family for row in rows))
    colour = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(families)}
    height = max(3.4, 0.26 * len(rows) + 1.4)
    with charts.panels(2, 11.0, height) as ((bars, lines), pictures):
        places = list(range(len(rows)))
        bars.barh(places, [row.score for row in rows], color=[colour[r.family] for r in rows])
        bars.set_yticks(places, [f"{row.name} (K = {row.tokens})" for row in rows], fontsize=8)
        bars.invert_yaxis()
        bars.set_xlabel(label)
        for family in families:
            own = sorted((r.tokens, r.score) for r in rows if r.family == family)
            lines.plot(*zip(*own, strict=True), marker="o", color=colour[family], label=family)
        lines.set_xscale("log")
        lines.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        lines.set_xlabel("K")
        lines.set_ylabel(label)
        charts.legend(lines)
    return pictures[0]
