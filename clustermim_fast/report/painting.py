"""The model painting hidden patches, an epoch a row, as it learns."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from . import pictures
from .columns import about_contrast, paints_pixels, predictions
from .figures import Figure
from .pictures import Column
from .view import RunView

__all__ = ["paint_epoch", "painting_of"]

SHOWN = 8  # images
ROWS = 12  # epochs in the picture, evenly spaced over those that were painted
SIDE = 104
GAP, MARGIN = 6, 92
NAME = "epoch_{:05d}.png"


@torch.no_grad()
def paint_epoch(view: RunView, epoch: int) -> Image.Image:
    """Keep this epoch's row in RUN/figures/painting and return the picture of all rows."""
    folder = _folder(view.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in _painted(folder):  # of a run that was interrupted and went back
        if number > epoch:
            row.unlink()
    columns = predictions(view)
    for name, column in (("image", columns[0]), ("visible", columns[1])):
        if not (folder / f"{name}.png").is_file():
            _save(_row([column]), folder / f"{name}.png")
    painted = columns[3:] if view.tokenizer is not None else columns[2:3]
    _save(_row(painted), folder / NAME.format(epoch))
    picture = _stack(folder)
    assert picture is not None
    return picture


def painting_of(view: RunView) -> Figure | None:
    """The picture of the epochs that were watched; None where none was."""
    picture = _stack(_folder(view.run_dir))
    if picture is None:
        return None
    return Figure(
        "painting",
        "The model as it learns",
        "",
        picture,
        "Training images, what the encoder sees of them, and what the model puts into the hidden "
        "patches after each of these epochs"
        + (", below them the pixels of the second branch" * paints_pixels(view))
        + f"{about_contrast(view)}.",
    )


def _folder(run_dir: Path) -> Path:
    return run_dir / "figures" / "painting"


def _painted(folder: Path) -> list[tuple[int, Path]]:
    """Epochs and their rows; of other names nothing is known."""
    found = ((re.fullmatch(r"epoch_(\d+)\.png", path.name), path) for path in folder.glob("*.png"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _row(columns: Sequence[Column]) -> Image.Image:
    """Images side by side, a line a column."""
    lines = []
    for column in columns:
        shown = pictures.enlarge(column.images[:SHOWN].float().cpu(), SIDE)
        spaced = torch.nn.functional.pad(shown, (0, GAP, 0, GAP), value=1.0)
        lines.append(torch.cat(list(spaced), dim=-1))
    return pictures.to_picture(torch.cat(lines, dim=-2))


def _save(image: Image.Image, path: Path) -> None:
    """Whole or not at all: the next page opens it."""
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, "PNG")
    os.replace(partial, path)


def _stack(folder: Path) -> Image.Image | None:
    """Rows below each other, what they are to the left."""
    painted = _painted(folder)
    if not painted:
        return None
    few = np.unique(np.linspace(0, len(painted) - 1, min(len(painted), ROWS)).round().astype(int))
    titled = [("image", folder / "image.png"), ("visible", folder / "visible.png")]
    titled += [(f"epoch {painted[i][0]}", painted[i][1]) for i in few]
    rows = []
    for title, file in titled:
        with Image.open(file) as opened:
            rows.append((title, opened.convert("RGB")))
    width = MARGIN + max(image.width for _, image in rows)
    sheet = Image.new("RGB", (width, sum(i.height for _, i in rows)), (pictures.PAPER,) * 3)
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=16), 0
    for title, image in rows:
        sheet.paste(image, (MARGIN, top))
        draw.text((MARGIN - 10, top + image.height / 2), title, pictures.INK, font, anchor="rm")
        top += image.height
    return sheet
