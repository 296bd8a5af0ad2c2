"""The card of a result: what a number was measured with, so that it can be measured again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clustermim_fast._version import __version__
from clustermim_fast.evaluate import Subject, protocol_lines, weights_fingerprint
from clustermim_fast.evaluate.intervals import BOOTSTRAP_RESAMPLES

__all__ = ["plain_card", "result_card", "run_config", "source_commit", "versions"]

REPOSITORY = Path(__file__).resolve().parents[2]


def result_card(
    subject: Subject, result: dict[str, Any], *, device: str, config: dict[str, Any] | None
) -> dict[str, Any]:
    """JSON-ready facts on a result of `evaluate`.

    "protocol" in words (the settings are the result's own), "interval", "commit" of the source tree
    (None for an installed package), "versions", "weights_sha256" of the evaluated encoder,
    fingerprints of both image sets (pixels and labels), "machine", "finished" (UTC), and "config":
    the resolved settings of the run that is evaluated, or None where there is none.
    """
    data = {
        "train_fingerprint": subject.train.fingerprint,
        "test_fingerprint": subject.test.fingerprint,
        "labelled_train_images": len(subject.train.labels),
        "mean": list(subject.mean),
        "std": list(subject.std),
    }
    return {
        "protocol": protocol_lines(result),
        "interval": f"percentile bootstrap over test images, {BOOTSTRAP_RESAMPLES:,} resamples",
        **plain_card(subject.encoders, data, device=device, config=config),
    }


def plain_card(
    encoders: Mapping[str, nn.Module],
    data: dict[str, Any],
    *,
    device: str,
    config: dict[str, Any] | None,
) -> dict[str, Any]:
    """The part of a card that needs no labels; ``encoders`` the evaluated one first, ``data`` what
    tells the images."""
    return {
        "commit": source_commit(),
        "versions": versions(),
        "weights_sha256": weights_fingerprint(next(iter(encoders.values()))),
        "data": data,
        "machine": {
            "device": device,
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
    }


def run_config(folder: Path | None) -> dict[str, Any] | None:
    """The resolved settings of a run folder; None where there is none."""
    path = folder / "config.json" if folder else None
    if path is None or not path.is_file():
        return None
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def source_commit() -> str | None:
    """The commit of the checkout that runs, with "+" where files differ from it; None outside."""
    if not (REPOSITORY / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(REPOSITORY), *arguments],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git on this machine, or a tree of another owner
    return commit + ("+" if changes else "")


def versions() -> dict[str, str]:
    """Of this package, Python, and what the numbers of a run depend on."""
    found = {"clustermim_fast": __version__, "python": platform.python_version()}
    for name in ("torch", "timm", "torchvision", "numpy", "scikit-learn"):
        found[name] = importlib.metadata.version(name)
    return found
