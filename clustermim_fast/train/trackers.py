"""Numbers and pictures to TensorBoard, Weights & Biases and MLflow, each a few lines; a library is
imported only where a run asks for it.
"""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import nn

from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.train.config import TrainConfig, to_dict


class Notes(NamedTuple):
    """What was seen after an epoch: numbers by name and pictures by name."""

    numbers: Mapping[str, float] = {}
    pictures: Mapping[str, Image.Image] = {}


OnEpoch = Callable[[int, nn.Module], Notes | None]


class Tracker(Protocol):
    """Where numbers and pictures of a run go. Names have a group before a slash."""

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None: ...

    def log_image(self, name: str, image: Image.Image, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Events in RUN/tensorboard; those after `first_step` were of steps that are now repeated."""

    def __init__(self, config: TrainConfig, library: Any, first_step: int) -> None:
        folder = Path(config.out) / "tensorboard"
        self._writer = library.SummaryWriter(str(folder), purge_step=first_step + 1)

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Scalars."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """A picture."""
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()


class WandB:
    """A run of the project log.wandb; a run that goes on is the same one there."""

    def __init__(self, config: TrainConfig, library: Any, known: dict[str, str]) -> None:
        known.setdefault("wandb", uuid.uuid4().hex[:12])
        self._library = library
        self._run = library.init(
            project=config.log.wandb,
            name=Path(config.out).name,
            dir=config.out,
            id=known["wandb"],
            resume="allow",
            config=to_dict(config),
        )

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """A row."""
        self._run.log(dict(numbers), step=step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """A picture."""
        self._run.log({name: self._library.Image(image)}, step=step)

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


class MLflow:
    """A run of the experiment log.mlflow; a run that goes on is the same one there."""

    def __init__(self, config: TrainConfig, library: Any, known: dict[str, str]) -> None:
        self._library = library
        library.set_experiment(config.log.mlflow)
        name = Path(config.out).name
        run = library.start_run(run_id=known.get("mlflow"), run_name=name)
        if "mlflow" not in known:
            library.log_params(_flat(to_dict(config)))
        known["mlflow"] = run.info.run_id

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """A row."""
        self._library.log_metrics(dict(numbers), step=step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """A picture."""
        self._library.log_image(image, artifact_file=f"{name}_{step:08d}.png")

    def close(self) -> None:
        """End the run there."""
        self._library.end_run()


def import_trackers(config: TrainConfig) -> dict[str, Any]:
    """The libraries that a run asks for, by their names.

    Raises ValueError with the command that installs a missing one.
    """
    log, found = config.log, {}
    wanted = (
        ("tensorboard", log.tensorboard, "torch.utils.tensorboard"),
        ("wandb", log.wandb, "wandb"),
        ("mlflow", log.mlflow, "mlflow"),
    )
    for name, asked, module in wanted:
        if asked:
            try:
                found[name] = importlib.import_module(module)
            except ImportError as error:
                raise ValueError(
                    f"log.{name}: its library cannot be imported ({error}); pip install {name}, "
                    f"or leave log.{name} out"
                ) from error
    return found


def open_trackers(config: TrainConfig, first_step: int) -> list[Tracker]:
    """The trackers of a run whose folder exists; its names there are in RUN/trackers.json.

    first_step: finished steps; above 0 it goes on.
    """
    libraries = import_trackers(config)
    file = Path(config.out) / "trackers.json"
    known: dict[str, str] = {}
    if first_step > 0 and file.is_file():
        known = _read_names(file)
    trackers: list[Tracker] = []
    if "tensorboard" in libraries:
        trackers.append(TensorBoard(config, libraries["tensorboard"], first_step))
    if "wandb" in libraries:
        trackers.append(WandB(config, libraries["wandb"], known))
    if "mlflow" in libraries:
        trackers.append(MLflow(config, libraries["mlflow"], known))
    if known:
        write_text_atomically(file, json.dumps(known) + "\n")
    return trackers


def _read_names(file: Path) -> dict[str, str]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise ValueError(
            f"{file} is not whole: which runs of the trackers go on is not known; delete it, and "
            "new ones are begun there"
        )
    return known


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.lr": ...} from settings in groups."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inside = value.items() if isinstance(value, Mapping) else ()
        flat |= {f"{name}.{key}": item for key, item in inside} or {name: value}
    return flat
