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
from .painting import painting_of
from .view import RunView

__all__ = ["LIVE", "write_report"]

# What a page of a run that goes on has besides, and loses when the run ends.
LIVE = r"(?s)<!-- live -->.*?<!-- /live -->"

ROW_TITLES = {
    "pretrained": "pretrained",
    "random_init": "random initialisation",
    "raw_pixels": "raw pixels",
}
KIND_TITLES = {
    "knn": "k nearest neighbours",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "finetune": "fine-tuning",
}

# Pictures that `evaluate attentive`, `attention` and `unlabeled` draw, with what they show.
LOOKS = {
    "attentive_maps": (
        "What the attentive probe looks at",
        "Test images, AbMILP's weights, and the attention of [cls]; random: the network untrained.",
    ),
    "attention": (
        "Attention, by block",
        "How [cls] and patches attend in each block; a mean over images, heads and patches.",
    ),
    "neighbours": (
        "Nearest neighbours",
        "Images, and beside each the most similar ones by cosine of the features, nearest first.",
    ),
    "neighbours_random_init": ("Nearest neighbours", "The same at random initialisation."),
    "frequency": (
        "Spatial frequencies, by block",
        "Log amplitude of the feature maps along the half diagonal, and their variance.",
    ),
}


def write_report(view: RunView) -> Path:
    """Write RUN/report.html and RUN/figures/*.png, and return the page's path."""
    figure_dir = view.run_dir / "figures"
    figure_dir.mkdir(parents=True, exist_ok=True)
    sections: dict[str, list[dict[str, Any]]] = {}
    for figure in figures_of(view):
        data = png(figure.image)
        _write(figure_dir / f"{figure.name}.png", data)
        sections.setdefault(figure.section, []).append(_embedded(figure, data))
    painting = painting_of(view)
    if painting is not None:
        data = png(painting.image)
        _write(figure_dir / f"{painting.name}.png", data)
        sections[painting.section] = [_embedded(painting, data)]
    for name, (section, caption) in LOOKS.items():
        path = figure_dir / f"{name}.png"
        if path.is_file():
            with Image.open(path) as image:
                figure = Figure(name, section, caption, image)
                sections.setdefault(section, []).append(_embedded(figure, path.read_bytes()))
    page = view.run_dir / "report.html"
    write_page(
        page,
        "report.html.j2",
        title=view.run_dir.resolve().name,
        method=view.method,
        about=view.about,
        sections=sections,
        evaluations=view.evaluations,
        broken=view.broken,
        row_titles=ROW_TITLES,
        kind_titles=KIND_TITLES,
        settings=list(flat(view.config)),
        versions=view.versions,
        refresh_s=view.refresh_s,
    )
    return page


def write_page(page: Path, template: str, **values: Any) -> None:
    """Fill a template of this package and put the whole page in place at once."""
    environment = Environment(
        loader=PackageLoader("clustermim_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    _write(page, environment.get_template(template).render(**values).encode())


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
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


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """("optim.epochs", "400") from nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
