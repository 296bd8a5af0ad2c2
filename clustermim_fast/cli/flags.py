"""Settings written as in other codebases: ``--name value``, and the names of MAE's pretraining."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["from_mae", "join_flags"]

OWN = ("--help", "--version", "--list")
# Without a value they mean yes. A number or yes or no after them is their value all the same.
BARE = (
    *("norm_pix_loss", "pin_mem", "no_pin_mem", "dist_on_itp", "use_volta32"),
    *("dry_run", "watch", "eval_every"),
)
VALUE = re.compile(r"true|false|yes|no|on|off|\d+", re.IGNORECASE)

RENAMED = {
    "data_path": "data",
    "output_dir": "out",
    "job_dir": "out",
    "input_size": "img_size",
    "num_workers": "workers",
    "min_lr": "optim.min_lr",
}
BY_TORCHRUN = "torchrun says it to each process"
BY_SCHEDULER = "torchrun, and the scheduler that starts it, say it"
LEFT_OUT = {
    "pin_mem": "memory is pinned where there is a GPU",
    "no_pin_mem": "memory is pinned where there is a GPU",
    "world_size": BY_TORCHRUN,
    "local_rank": BY_TORCHRUN,
    "dist_on_itp": BY_TORCHRUN,
    "dist_url": BY_TORCHRUN,
    **dict.fromkeys(("ngpus", "nodes", "timeout", "partition", "comment"), BY_SCHEDULER),
    "use_volta32": BY_SCHEDULER,
}
MODEL = re.compile(r"mae_vit_(tiny|small|base|large|huge)_patch(\d+)(_dec512d8b)?")


def join_flags(arguments: Sequence[str]) -> list[str]:
    """["--epochs", "5", "--mask-ratio=0.6"] -> ["--epochs=5", "--mask_ratio=0.6"]."""
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        text = rest.pop(0)
        name, equals, value = text.removeprefix("--").partition("=")
        if not text.startswith("--") or not name or text in OWN:
            joined.append(text)
            continue
        if not equals and name.replace("-", "_") in BARE:
            given = bool(rest) and VALUE.fullmatch(rest[0]) is not None
            equals, value = "=", rest.pop(0) if given else "true"
        elif not equals and rest and not rest[0].startswith("--"):
            equals, value = "=", rest.pop(0)
        joined.append(f"--{name.replace('-', '_')}{equals}{value}")
    return joined


def from_mae(given: Sequence[tuple[str, str, bool]]) -> tuple[list[str], list[str]]:
    """Settings of `pretrain` and remarks, from (name, value, whether it was written with dashes).

    Raises ValueError for a name of MAE's that means nothing here, with what does.
    """
    settings: list[str] = []
    notes: list[str] = []
    names = {name for name, _, _ in given}
    for name, value, dashes in given:
        network = MODEL.fullmatch(value) if name in ("model", "backbone") else None
        if name in RENAMED:
            settings.append(f"{RENAMED[name]}={value}")
            notes.append(f"{name} is {RENAMED[name]} here")
        elif network:
            encoder = f"vit_{network[1]}_patch{network[2]}_224"
            settings.append(f"{name}={encoder}")
            settings += [] if "method" in names else ["method=mae"]
            notes.append(
                f"{value} is method=mae {name}={encoder} here; what is not given is chosen for the "
                "images, and `clustermim recipes mae_vit_base_imagenet` has MAE's own settings"
            )
        elif name in LEFT_OUT:
            notes.append(f"{name} is left out: {LEFT_OUT[name]}")
        elif name == "log_dir":
            settings.append("log.tensorboard=true")
            notes.append("log_dir is log.tensorboard=true here: events go to OUT/tensorboard")
        elif name == "start_epoch" and value == "0":
            notes.append("start_epoch is left out: a run goes on from where its checkpoint is")
        elif name == "start_epoch" or (name == "resume" and not _is_own_resume(value)):
            raise ValueError(
                f"{name}={value}: a run goes on from its own folder, and where it stopped: repeat "
                "its command with the same out=FOLDER (resume=must makes a missing checkpoint an "
                "error). To begin from the weights of a file: model.weights=FILE"
            )
        elif name == "resume" and not value:
            continue
        else:
            settings.append(f"{name}={value}")
            if name == "batch_size" and dashes:
                notes.append(BATCH_NOTE)
    return settings, notes


BATCH_NOTE = (
    "batch_size is that of one forward pass of all processes; MAE's is that of each GPU. The "
    "effective batch is printed below"
)


def _is_own_resume(value: str) -> bool:
    return value in ("", "auto", "must", "restart")
