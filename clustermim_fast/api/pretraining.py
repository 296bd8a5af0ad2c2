"""`pretrain`: from a folder of images to a run folder with report and export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustermim_fast import recipes
from clustermim_fast.checkpoint import (
    naming_the_remedy,
    require_writable,
    write_text_atomically,
)
from clustermim_fast.data import ImageSet
from clustermim_fast.encoders import is_convolutional
from clustermim_fast.models import ModelConfig
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers import FeatureTokenizer, Tokenizer, load_tokenizer
from clustermim_fast.train import (
    RunResult,
    TokenizerConfig,
    TrainConfig,
    config_from_overrides,
    load_config,
    needs_tokenizer,
    open_run_images,
    prepare_tokenizer,
    process_group,
    resolve,
    run,
)
from clustermim_fast.train.config import ALIASES
from clustermim_fast.train.distributed import require_one_process
from clustermim_fast.train.memory import naming_a_smaller_batch
from clustermim_fast.train.prepare import default_out
from clustermim_fast.train.trackers import import_trackers

from .along import Along
from .exporting import export_run
from .fingerprint import tokenizer_key
from .reporting import report_run
from .trying import try_run

__all__ = ["fit_tokenizer", "pretrain", "starting_config"]

Say = Callable[[str], None]


def say_line(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def pretrain(
    recipe_or_path: str | Path | TrainConfig | None = None,
    *,
    say: Say = say_line,
    report: bool = True,
    export: bool = True,
    dry_run: bool = False,
    **overrides: Any,
) -> RunResult:
    """Pretrain a masked image model; under torchrun on all its ranks, of which rank 0 writes.

        pretrain(data="photos/")                          # sizes chosen by looking at the images
        pretrain("digits", epochs=50, out="runs/digits")  # a recipe, changed
        pretrain("runs/digits/config.json", seed=1)       # as another run, changed

    Args:
        recipe_or_path: a recipe's name, a config.json, a TrainConfig, or a folder of images.
        say: takes the lines of progress.
        report, export: write RUN/report.html and RUN/export/ at the end.
        dry_run: five steps only, for speed, memory and a sheet of crops; leaves no run folder.
        overrides: settings as in the config, short or dotted: ``epochs=10, **{"optim.lr": 3e-4}``.

    Raises:
        ValueError: an unknown setting (near misses are named) or settings that do not fit together.
        MemoryError: out of memory, naming the batch to try.
    """
    config, images, said = _prepare(recipe_or_path, overrides)
    if not config.out:
        config = dataclasses.replace(config, out=str(default_out(config)))
    with process_group(config.efficiency.device):
        writes = everyone().rank == 0
        say = say if writes else (lambda line: None)
        for line in said:
            say(f"chosen: {line}")
        import_trackers(config)  # a missing one is said before anything takes its time
        if dry_run:
            require_one_process("dry_run=true")
            return try_run(config, images, say)
        with naming_the_remedy(config.out):
            everyone().agree(lambda: require_writable(config.out) if writes else None)
            result = _pretrain(config, images, say)
    if writes:
        with naming_the_remedy(config.out):
            _finish(result, images, say, report=report, export=export)
    return result


def _pretrain(config: TrainConfig, images: ImageSet, say: Say) -> RunResult:
    """The run of a resolved config, by all ranks."""
    tokenizer = _cached_tokenizer(config, images, say) if needs_tokenizer(config) else None
    along = Along(config, tokenizer, images, say)
    looks = along if config.log.eval_every or config.log.watch else None
    try:
        with naming_a_smaller_batch(config):
            return run(config, tokenizer, images, say=say, on_epoch=looks)
    finally:
        if everyone().rank == 0:
            along.close()


def _finish(result: RunResult, images: ImageSet, say: Say, *, report: bool, export: bool) -> None:
    """The export and the report of a run."""
    if export:
        say(f"encoder for timm: {export_run(result.run_dir)}")
    if report:
        say(f"report: {report_run(result.run_dir, images=images)}")


def fit_tokenizer(out: str | Path, *, say: Say = say_line, **overrides: Any) -> Tokenizer:
    """Fit the tokenizer that a run with these settings would use, and save it to ``out``.

    Settings of the tokenizer need no "tokenizer." before them, but batch_size, which is the run's
    without; with kind="feature", ``model`` is the network whose features are clustered, not the
    encoder of a run.
    """
    require_one_process("tokenizer fit")
    own = {field.name for field in dataclasses.fields(TokenizerConfig)}
    own -= {"path", "batch_size"}
    if overrides.get("kind") != "feature":  # "model" is then no network that gives features
        own -= {"model"}
    named = {f"tokenizer.{key}" if key in own else key: v for key, v in overrides.items()}
    config, images, said = _prepare(None, named, network=False)
    for line in said:
        say(f"chosen: {line}")
    if config.tokenizer.path:
        raise ValueError("tokenizer.path: there is nothing to fit when a tokenizer is given")
    say(images.summary())
    tokenizer = prepare_tokenizer(config, images)
    if isinstance(tokenizer, FeatureTokenizer):
        say(f"network: {tokenizer.network.about}")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out)
    return tokenizer


def starting_config(
    recipe_or_path: str | Path | TrainConfig | None, overrides: dict[str, Any]
) -> tuple[TrainConfig, str]:
    """The config of a run, and one line about what was chosen for the images ("" for a recipe)."""
    if isinstance(recipe_or_path, TrainConfig):
        return config_from_overrides(recipe_or_path, overrides), ""
    name = "" if recipe_or_path is None else str(recipe_or_path)
    if name in recipes.list_recipes():
        return config_from_overrides(recipes.get_recipe(name), overrides), ""
    if name.endswith(".json"):
        stored = dataclasses.replace(load_config(name), out="")  # like it, not into its folder
        return config_from_overrides(stored, overrides), ""
    if name:
        if name != "digits" and not Path(name).expanduser().is_dir():
            raise ValueError(
                f"recipe: expected one of {', '.join(recipes.list_recipes())}, a config.json or a "
                f"folder of images, got {name!r}"
            )
        overrides = {"data": name, **overrides}
    wanted = config_from_overrides(TrainConfig(), overrides)  # refuses unknown keys early
    if not wanted.data.path:
        raise ValueError(
            'data: expected a folder of images or "digits", got nothing; give data=DIR'
        )
    config, said = recipes.auto_recipe(wanted.data.path, wanted.method)
    given = {ALIASES.get(key, key) for key in overrides}
    if "model.encoder" in given:  # another encoder's widths mean nothing to this one
        # Of a convolutional network, the side of the squares in which masks are drawn: its own.
        patch = None if is_convolutional(wanted.model.encoder) else config.model.patch_size
        config = dataclasses.replace(config, model=ModelConfig(patch_size=patch))
    return config_from_overrides(config, overrides), said


def _prepare(
    recipe_or_path: str | Path | TrainConfig | None,
    overrides: dict[str, Any],
    *,
    network: bool = True,
) -> tuple[TrainConfig, ImageSet, list[str]]:
    """The resolved config, its images, and lines on what was chosen, of the ``network`` too."""
    config, said = starting_config(recipe_or_path, overrides)
    lines: list[str] = []
    if config.data.image_size is None:
        raise ValueError("img_size: expected a size in pixels, got none; give img_size=32")
    if config.data.path != "digits":  # the run must find its images from any folder
        path = str(Path(config.data.path).expanduser().resolve())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
    images = open_run_images(config)
    config = resolve(config, images)
    if said:
        config = _fit_to_number(config, len(images), {ALIASES.get(k, k) for k in overrides})
        lines = [f"{said.partition(': ')[0]}: {_sizes(config, network)}"]
    return config, images, lines


def _fit_to_number(config: TrainConfig, num_images: int, given: set[str]) -> TrainConfig:
    """A smaller batch and codebook for few images, unless somebody asked for theirs."""
    optim, tokenizer = config.optim, config.tokenizer
    size = optim.batch_size
    while size > 8 and size * 8 > num_images:  # at least eight updates an epoch
        size //= 2
    if "optim.batch_size" not in given:
        optim = dataclasses.replace(optim, batch_size=size)
    assert config.data.image_size is not None
    assert config.model.patch_size is not None
    height, width = config.data.image_size
    patches = num_images * (height // config.model.patch_size) * (width // config.model.patch_size)
    if not {"tokenizer.num_clusters", "tokenizer.path"} & given:
        clusters = min(tokenizer.num_clusters, max(2, patches // 16))
        tokenizer = dataclasses.replace(tokenizer, num_clusters=clusters)
    return dataclasses.replace(config, optim=optim, tokenizer=tokenizer)


def _sizes(config: TrainConfig, network: bool) -> str:
    """What a run will use, chosen or given, as settings that the next command could have."""
    assert config.data.image_size is not None
    height, width = config.data.image_size
    model = config.model
    widths = {"embed_dim": model.embed_dim, "depth": model.depth, "num_heads": model.num_heads}
    parts = [f"img_size={height}x{width}", f"patch_size={model.patch_size}"]
    if network:
        parts += [f"model={model.encoder}"]
        parts += [f"model.{name}={value}" for name, value in widths.items() if value is not None]
    if config.tokenizer.path:  # its own number of clusters, not the setting's
        parts.append(f"tokenizer={config.tokenizer.path}")
    elif needs_tokenizer(config):
        parts.append(f"num_clusters={config.tokenizer.num_clusters}")
    if network:
        optim = config.optim
        parts.append(f"steps={optim.steps}" if optim.steps else f"epochs={optim.epochs}")
        parts.append(f"batch_size={optim.batch_size}")
    return " ".join(parts)


def _cached_tokenizer(config: TrainConfig, images: ImageSet, say: Say) -> Tokenizer:
    """The run folder's tokenizer where images and settings are the same, else a new one."""
    file = Path(config.out) / "tokenizer.safetensors"
    note = Path(config.out) / "tokenizer.json"
    key = None if config.tokenizer.path else tokenizer_key(config, images)
    stored = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    group = everyone()
    group.require_equal(f"pretrain: images, and the tokenizer in {config.out}", (key, stored))
    if key is not None and file.is_file() and stored is not None:
        tokenizer = load_tokenizer(file)
        if stored == {"key": key, "fingerprint": tokenizer.fingerprint()}:
            say(f"tokenizer: {file} was fitted on these images with these settings")
            return tokenizer
    begun = (Path(config.out) / "checkpoints" / "last.pt").is_file()
    goes_on = begun and file.is_file() and config.resume != "restart"
    if key is not None and not goes_on:
        wanted = config.tokenizer
        what = f"features of {wanted.model}" if wanted.kind == "feature" else "pixels"
        count = min(len(images), wanted.max_images)
        say(f"fitting the tokenizer: K = {wanted.num_clusters}, {what} of {count} images at most")
    tokenizer = prepare_tokenizer(config, images)
    # A run that goes on keeps its tokenizer, whatever the images are now: the note stays true.
    if key is not None and not goes_on and group.rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(file)
        text = json.dumps({"key": key, "fingerprint": tokenizer.fingerprint()})
        write_text_atomically(note, text + "\n")
    return tokenizer
