"""Commands that look: `compare`, and the kinds of `evaluate` that need no class labels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustermim_fast.cli.settings import convert, read_settings, subject_of, to_numbers, to_seed
from clustermim_fast.cli.texts import COMPARE_HELP

__all__ = ["add_compare", "add_kinds"]

COMMON_KEYS: dict[str, Callable[[str], Any]] = {
    "data": str,
    "checkpoint": str,
    "weights": str,
    "images": int,
    "batch_size": int,
    "device": str,
    "out": str,
}
KEYS: dict[str, dict[str, Callable[[str], Any]]] = {
    "attention": {},
    "unlabeled": {"queries": int, "neighbours": int, "pool": str},
    "segment": {
        "masks": str,
        "penalties": to_numbers,
        "max_patches": int,
        "max_iter": int,
        "seed": to_seed,
    },
}
TITLES = {
    "attention": "ten statistics of how each block of a ViT attends; needs no labels",
    "unlabeled": "effective rank, nearest neighbours, frequencies; needs no labels",
    "segment": "linear classifier of frozen patches, by mean IoU; needs masks",
}
TEXTS = {
    "attention": """\
The attention statistics of "Beyond [cls]" (arXiv 2412.03215) by block, beside random
initialisation: how much [cls] and patches attend to themselves and to each other, how selectively
(entropy), and how much that changes them. Numbers to RUN/eval/attention.json, a picture to
RUN/figures/attention.png.

  clustermim evaluate attention runs/clustermim_photos
  clustermim evaluate attention vit_small_patch16_224.dino data=photos/ out=dino_attention
""",
    "unlabeled": """\
RankMe (the effective rank of the features, arXiv 2210.02885), a sheet of nearest neighbours, and
log amplitudes by spatial frequency of each block, beside random initialisation. Numbers to
RUN/eval/unlabeled.json, pictures to RUN/figures.

  clustermim evaluate unlabeled runs/clustermim_photos images=2048 neighbours=8
""",
    "segment": """\
A multinomial logistic regression on the frozen features of patches, its penalty chosen on held-out
training images; logits are interpolated to pixels. Mean IoU with a bootstrap interval, beside
random initialisation and the patches' pixels. Masks are PNG files of class indices under the names
of the images (data/a/b.jpg: masks/a/b.png); 255 does not count. Folders with train/ and test/, or
a fifth of the images is held out.

  clustermim evaluate segment runs/clustermim_photos data=images/ masks=masks/
""",
}


def add_kinds(kinds: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add these kinds to the parser of `evaluate`."""
    for kind, title in TITLES.items():
        keys = " ".join(f"{key}=" for key in keys_of(kind))
        command = add(kinds, kind, run_look, title, f"{TEXTS[kind]}\nSettings: {keys}\n")
        command.set_defaults(kind=kind)
        command.add_argument("run", metavar="RUN", help="run folder, exported encoder or timm name")
        command.add_argument("settings", nargs="*", metavar="key=value")


def keys_of(kind: str) -> dict[str, Callable[[str], Any]]:
    """The settings of a kind and what they are read as."""
    common = {
        key: read for key, read in COMMON_KEYS.items() if (kind, key) != ("segment", "images")
    }
    return common | KEYS[kind]


def run_look(parsed: argparse.Namespace) -> int:
    """clustermim evaluate attention | unlabeled | segment."""
    known = keys_of(parsed.kind)
    run, texts = subject_of(parsed.run, parsed.settings)
    settings = convert(read_settings(texts), known, f"evaluate {parsed.kind}")
    from clustermim_fast import api

    if parsed.kind == "segment":
        api.evaluate_segmentation(run, **{"data": "", "masks": ""} | settings)
        return 0
    functions = {"attention": api.evaluate_attention, "unlabeled": api.evaluate_unlabeled}
    functions[parsed.kind](run, progress=sys.stderr.isatty(), **settings)
    if not settings.get("out"):  # with it the run folder stays as it was
        report_again(run)
    return 0


def report_again(run: str) -> None:
    """Write a run's report.html again where it has one, now with a new result in it."""
    from clustermim_fast import api

    if (Path(run) / "report.html").is_file():
        try:
            print(f"report: {api.report_run(run)}")
        except ValueError as error:  # the images it was trained on need not be on this machine
            print(f"report.html is as it was: {error}", file=sys.stderr)


def add_compare(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `clustermim compare`."""
    title = "write one page on several run folders"
    command = add(commands, "compare", run_compare, title, COMPARE_HELP)
    command.add_argument("settings", nargs="+", metavar="RUN", help="run folders; out=PAGE.html")


def run_compare(parsed: argparse.Namespace) -> int:
    """clustermim compare."""
    # A folder whose name has "=" in it is a folder all the same.
    runs = [text for text in parsed.settings if "=" not in text or Path(text).is_dir()]
    texts = [text for text in parsed.settings if text not in runs]
    settings = convert(read_settings(texts), {"out": str}, "compare")
    from clustermim_fast import api

    api.compare_runs(runs, **settings)
    return 0
