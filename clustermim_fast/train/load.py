"""Open a finished or unfinished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from clustermim_fast.checkpoint import load_checkpoint
from clustermim_fast.models import create_model
from clustermim_fast.tokenizers import Tokenizer, load_tokenizer
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.overrides import from_dict


@dataclass(frozen=True)
class LoadedRun:
    """A run's config, model (CPU, eval mode), tokenizer (None for pixel targets) and progress."""

    config: TrainConfig
    model: nn.Module
    tokenizer: Tokenizer | None
    step: int
    epoch: int


def load_run(run_dir: str | Path, checkpoint: str = "last", *, use_ema: bool = True) -> LoadedRun:
    """Load RUN/checkpoints/<checkpoint>.pt with the config stored in it.

    Args:
        checkpoint: "last" or another name in the folder, "epoch_0010" for instance.
        use_ema: take the averaged weights where the run kept them.

    Raises:
        ValueError: no such checkpoint (those there are named), or a damaged one.
    """
    folder = Path(run_dir) / "checkpoints"
    file = folder / f"{checkpoint.removesuffix('.pt')}.pt"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.pt"))) or "none"
        raise ValueError(f"{run_dir}: no checkpoint {checkpoint!r}; there: {there}")
    state = load_checkpoint(file)
    config = from_dict(state["config"])
    model = random_model(config)
    model.load_state_dict(state["ema"] if use_ema and state["ema"] is not None else state["model"])
    tokenizer_file = Path(run_dir) / "tokenizer.safetensors"
    tokenizer = None
    if state["tokenizer"]:
        tokenizer = load_tokenizer(str(tokenizer_file))
        if tokenizer.fingerprint() != state["tokenizer"]:
            raise ValueError(f"{tokenizer_file} is not the tokenizer that {file} was trained with")
    return LoadedRun(config, model.eval(), tokenizer, int(state["step"]), int(state["epoch"]))


def random_model(config: TrainConfig) -> nn.Module:
    """The model of a resolved config with its random weights (model.weights unread), eval mode."""
    if config.data.image_size is None:
        raise ValueError("config: expected a resolved one, got data.image_size = None")
    return create_model(
        config.method,
        config.model,
        config.data.image_size,
        config.tokenizer.num_clusters,
        seed=config.seed,
    ).eval()
