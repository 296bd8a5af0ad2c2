"""`run`: pretraining from a config to a run folder, resumable at any step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clustermim_fast.checkpoint import remove_partial
from clustermim_fast.data import ImageSet
from clustermim_fast.models import create_model, load_encoder_weights
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers import Tokenizer
from clustermim_fast.train.announce import announce
from clustermim_fast.train.batches import (
    Plan,
    TrainingBatches,
    choose_workers,
    make_loader,
    reading_advice,
)
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.copies import copied_beside
from clustermim_fast.train.distributed import (
    PATIENCE,
    STEP_PATIENCE,
    choose_device,
    process_group,
    share_batch_norm,
    wait_at_most,
    while_rank_0_works,
)
from clustermim_fast.train.log import Window
from clustermim_fast.train.overrides import save_config
from clustermim_fast.train.prepare import (
    default_out,
    needs_tokenizer,
    open_run_images,
    prepare_tokenizer,
    require_matching_tokenizer,
    resolve,
)
from clustermim_fast.train.progress import Progress
from clustermim_fast.train.sharding import whole
from clustermim_fast.train.skipped import SkippedFiles
from clustermim_fast.train.state import begin, find_checkpoint, save_state
from clustermim_fast.train.step import ModelWithLoss
from clustermim_fast.train.stop import (
    Interrupted,
    NonFiniteBatch,
    NonFiniteError,
    StopFlag,
    all_finite,
    non_finite_message,
    stop_on_signals,
)
from clustermim_fast.train.trackers import OnEpoch
from clustermim_fast.train.update import Update

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """Where a run is and how it ended; `final_loss` is the mean of its last line of progress."""

    run_dir: Path
    step: int
    epoch: int
    final_loss: float
    metrics: dict[str, Any]


def run(
    config: TrainConfig,
    tokenizer: Tokenizer | None = None,
    images: ImageSet | None = None,
    *,
    say: Say = lambda line: print(line, flush=True),
    on_epoch: OnEpoch | None = None,
) -> RunResult:
    """Pretrain; under torchrun on all its ranks, which call this with the same arguments.

    Args:
        config: what to do; the resolved form is written to RUN/config.json.
        tokenizer: a frozen tokenizer; None: the config's, or fitted on the images.
        images: the training images; None: opened from the config.
        say: takes lines of progress.
        on_epoch: called on rank 0, for which the others wait, with finished epochs and the model;
            what it returns goes to trackers.

    Raises:
        ValueError: settings that do not fit together, or a run folder of another run.
        NonFiniteError: NaN or infinity in the loss or the weights; nothing is written for it.
        Interrupted: SIGTERM, Ctrl-C or SIGUSR1, its checkpoint written (a SystemExit, code 143,
            130 or 138).
    """
    with process_group(config.efficiency.device):
        quiet = everyone().rank > 0
        return _run(config, tokenizer, images, (lambda line: None) if quiet else say, on_epoch)


def _run(
    config: TrainConfig,
    tokenizer: Tokenizer | None,
    images: ImageSet | None,
    say: Say,
    on_epoch: OnEpoch | None,
) -> RunResult:
    images = everyone().agree(lambda: open_run_images(config)) if images is None else images
    config = everyone().agree(lambda: resolve(config, images))
    if not config.out:
        config = dataclasses.replace(config, out=str(default_out(config)))
    say(images.summary())
    if needs_tokenizer(config):
        tokenizer = prepare_tokenizer(config, images) if tokenizer is None else tokenizer
        require_matching_tokenizer(config, tokenizer)
        settings = dataclasses.replace(config.tokenizer, num_clusters=tokenizer.num_clusters)
        config = dataclasses.replace(config, tokenizer=settings)
    elif tokenizer is not None or config.tokenizer.path:
        say(f"{config.method} predicts pixels: the tokenizer is not used")
        tokenizer = None
    return _Trainer(config, tokenizer, images, say, on_epoch).train()


class _Trainer:
    """The parts of one run; `train` is the loop. Every rank has one; rank 0's writes."""

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Tokenizer | None,
        images: ImageSet,
        say: Say,
        on_epoch: OnEpoch | None,
    ) -> None:
        self.config, self.images, self.say, self.on_epoch = config, images, say, on_epoch
        self.out = Path(config.out)
        self.ranks = everyone()
        self.device = choose_device(config.efficiency.device)
        if config.data.in_memory == "device":
            self.images = images = images.to(self.device)
        self.plan = Plan.of_run(config, len(images))
        self.plan.part(self.ranks.rank, self.ranks.count)  # refuses a batch that is too small
        self.fingerprint = "" if tokenizer is None else tokenizer.fingerprint()
        checkpoint = find_checkpoint(config, self.fingerprint, len(images))
        self._require_one_run(checkpoint)

        clusters = config.tokenizer.num_clusters
        self.create = partial(
            create_model, config.method, config.model, images.image_size, clusters, seed=config.seed
        )
        model = self.create()
        if config.model.weights and checkpoint is None:
            say(f"encoder weights: {load_encoder_weights(model, config.model.weights).line()}")
        model = share_batch_norm(model, self.device).to(self.device).train()
        objective = ModelWithLoss.of_run(config, model, tokenizer, self.device)
        window = Window(clusters if tokenizer is not None else None, self.device)
        self.state = begin(config, objective, window, checkpoint, self.device)
        self.tokenizer = tokenizer
        patch = int(model.patch_size)  # type: ignore[arg-type]
        self.batches = TrainingBatches(images, config.data, config.mask, patch, config.seed)
        self.update = Update(config, self.plan, self.state, objective, self.batches, self.device)

    def _require_one_run(self, checkpoint: dict[str, Any] | None) -> None:
        """Refuse ranks that would train something different."""
        equal = self.ranks.require_equal
        identity = self.config.identity()
        del identity["data"]["path"]  # a machine may have its own copy
        equal("pretrain: settings", identity)
        equal("pretrain: number of images", len(self.images))
        equal("pretrain: tokenizer", self.fingerprint)
        step = 0 if checkpoint is None else checkpoint["step"]
        equal(f"pretrain: checkpoint in {self.out} (all ranks must see this folder), step", step)

    def train(self) -> RunResult:
        """Run to the last step."""
        writes = self.ranks.rank == 0
        if writes:
            self.out.mkdir(parents=True, exist_ok=True)
        goes_on = self.state.step > 0
        listed = self.out / "skipped_files.txt"
        skipped = SkippedFiles(listed, self.images.broken, self.say, goes_on=goes_on)
        announce(
            self.config, self.plan, self.state, self.device, dtype=self.update.dtype, say=self.say
        )
        if self.state.step >= self.plan.total_steps:
            self.say(f"{self.out} is complete: {self.state.step} steps; nothing to do")
            return self._result()
        if writes:
            save_config(self.config, self.out / "config.json")
            if self.config.resume == "restart":
                for name in ("checkpoints", "eval", "figures"):  # a report shows what lies there
                    shutil.rmtree(self.out / name, ignore_errors=True)
            remove_partial(self.out / "checkpoints")
            if self.tokenizer is not None:
                self.tokenizer.save(str(self.out / "tokenizer.safetensors"))
        with contextlib.ExitStack() as stack:
            progress = None
            if writes:
                advice = reading_advice(self.config.data, self.images)
                progress = Progress(self.config, self.plan, self.state.step, self.say, advice)
                stack.callback(progress.close)
            stack.callback(wait_at_most, PATIENCE)
            try:
                self._loop(stack.enter_context(stop_on_signals()), skipped, progress)
            except NonFiniteBatch as error:
                raise NonFiniteError(self._non_finite(str(error))) from None
        return self._result()

    def _loop(self, stop: StopFlag, skipped: SkippedFiles, progress: Progress | None) -> None:
        state, plan, log = self.state, self.plan, self.config.log
        loader = make_loader(
            self.batches,
            plan,
            state.step,
            workers=choose_workers(self.config.efficiency.workers, self.images, self.device),
            pin_memory=self.device.type == "cuda",
            # On a CPU the network has the cores: one takes what crops need.
            threads=max(1, torch.get_num_threads() // 2) if self.device.type == "cuda" else 1,
        )
        passes = iter(loader)
        if self.device.type == "cuda" and not self.batches.resident:
            passes = copied_beside(passes, self.device, plan.accumulate)
        state.window.restart_clock()
        wait_at_most(STEP_PATIENCE)
        while state.step < plan.total_steps:
            lr = self.update(passes, skipped, stop)
            epoch, in_epoch = divmod(state.step, plan.steps_per_epoch)
            every = log.checkpoint_every_steps
            done = state.step == plan.total_steps
            looks = done or state.step % log.interval(plan.total_steps) == 0
            looks = looks and not state.window.empty  # all of its updates may have been skipped
            if looks:
                row = self._row(lr)
                skipped.write()
                if progress is not None:
                    progress.write(row)
            elif progress is not None:
                progress.sign_of_life(state.step)
            if (
                done
                or (every and state.step % every == 0)
                or (in_epoch == 0 and epoch % log.checkpoint_every_epochs == 0)
            ):
                skipped.write()
                self._save()
            if in_epoch == 0 and self.on_epoch is not None:
                with while_rank_0_works():
                    model = whole(state.model, self.create, self.device)
                    if progress is not None:
                        progress.note(state.step, self.on_epoch(epoch, model))
                state.model.train()
                state.window.restart_clock()
            # A GPU is asked at its lines of progress alone: to ask is to wait for it.
            number = self.update.stop_asked() if looks or self.device.type == "cpu" else 0
            if number:
                path = self._save()
                message = f"stopped by signal {number} at step {state.step}; {path} written"
                self.say(message if done else f"{message}; the same command goes on from there")
                raise Interrupted(number, message)

    def _row(self, lr: float) -> dict[str, Any]:
        """What happened since the last line, on all ranks; the next interval begins."""
        self.update.require_finite()
        state, plan = self.state, self.plan
        row = {"step": state.step, "epoch": state.step / plan.steps_per_epoch, "lr": lr}
        row["images_seen"] = state.step * plan.effective_batch
        row |= state.window.of_all().metrics(plan.effective_batch)
        if state.skipped:
            row["skipped_updates"] = state.skipped
        if state.scaler.is_enabled():
            row |= {"loss_scale": state.scaler.get_scale(), "overflows": state.overflows}
        if not math.isfinite(row["loss"]):
            raise NonFiniteError(self._non_finite(f"the loss is {row['loss']}"))
        state.last_row = row
        state.window.clear()
        return row

    def _save(self) -> Path:
        """Every rank calls it: what rank 0 writes is of all."""
        self.update.require_finite()
        state = self.state
        if not math.isfinite(state.window.mean_loss()):
            raise NonFiniteError(self._non_finite("the loss is not finite"))
        if not all_finite(state.model) or (state.ema is not None and not all_finite(state.ema)):
            raise NonFiniteError(self._non_finite("a weight is not finite"))
        with while_rank_0_works():
            return save_state(state, self.config, self.fingerprint, self.plan)

    def _non_finite(self, what: str) -> str:
        last = self.out / "checkpoints" / "last.pt"
        good = str(last) if last.exists() else "none yet"
        lr = self.state.optimizer.param_groups[0]["lr"]
        return non_finite_message(what, self.state.step, lr, self.update.dtype is not None, good)

    def _result(self) -> RunResult:
        state = self.state
        loss = float(state.last_row.get("loss", math.nan))
        epoch = state.step // self.plan.steps_per_epoch
        return RunResult(self.out, state.step, epoch, loss, dict(state.last_row))
