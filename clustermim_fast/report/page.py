"""One self-contained report.html: pictures inside, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .figures import Figure, figures_of
from .view import RunView

__all__ = ["write_report"]

ROW_TITLES = {
    "pretrained": "pretrained",
    "random_init": "random initialisation",
    "raw_pixels": "raw pixels",
}
KIND_TITLES = {"knn": "k nearest neighbours", "linear": "linear probe"}


def write_report(view: RunView) -> Path:
    """Write RUN/report.html and RUN/figures/*.png, and return the page's path."""
    figure_dir = view.run_dir / "figures"
    figure_dir.mkdir(parents=True, exist_ok=True)
    sections: dict[str, list[dict[str, Any]]] = {}
    for figure in figures_of(view):
        data = _png(figure.image)
        _write(figure_dir / f"{figure.name}.png", data)
        sections.setdefault(figure.section, []).append(_embedded(figure, data))
    environment = Environment(
        loader=PackageLoader("clustermim_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        title=view.run_dir.resolve().name,
        method=view.method,
        about=view.about,
        sections=sections,
        evaluations=view.evaluations,
        row_titles=ROW_TITLES,
        kind_titles=KIND_TITLES,
        settings=list(_flat(view.config)),
        versions=view.versions,
    )
    page = view.run_dir / "report.html"
    _write(page, html.encode())
    return page


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _embedded(figure: Figure, data: bytes) -> dict[str, Any]:
    return {
        "name": figure.name,
        "caption": figure.caption,
        "intro": figure.intro,
        "width": figure.image.width,
        "height": figure.image.height,
        "data": base64.b64encode(data).decode(),
    }


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
