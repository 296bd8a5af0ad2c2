"""`run`: pretraining from a config to a run folder, resumable at any step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3

from clustermim_fast.checkpoint import remove_partial
from clustermim_fast.data import ImageSet
from clustermim_fast.masking import Masks
from clustermim_fast.models import create_model, load_encoder_weights
from clustermim_fast.optim import create_optimizer, learning_rate, set_learning_rate
from clustermim_fast.tokenizers import Tokenizer
from clustermim_fast.train.announce import announce
from clustermim_fast.train.batches import (
    Batch,
    Plan,
    TrainingBatches,
    choose_workers,
    make_loader,
    reading_advice,
)
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.log import Window
from clustermim_fast.train.overrides import save_config
from clustermim_fast.train.prepare import (
    choose_device,
    default_out,
    needs_tokenizer,
    open_run_images,
    prepare_tokenizer,
    require_matching_tokenizer,
    require_one_process,
    resolve,
)
from clustermim_fast.train.progress import Progress
from clustermim_fast.train.skipped import SkippedFiles
from clustermim_fast.train.state import TrainState, find_checkpoint, load_state, save_state
from clustermim_fast.train.step import forward_step
from clustermim_fast.train.stop import (
    Interrupted,
    NonFiniteError,
    StopFlag,
    all_finite,
    non_finite_message,
    stop_on_signals,
)
from clustermim_fast.train.trackers import OnEpoch

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
    """Pretrain.

    Args:
        config: what to do; the resolved form is written to RUN/config.json.
        tokenizer: a frozen tokenizer; None: the config's, or fitted on the images.
        images: the training images; None: opened from the config.
        say: takes lines of progress.
        on_epoch: called with finished epochs and the model; what it returns goes to trackers.

    Raises:
        ValueError: settings that do not fit together, or a run folder of another run.
        NonFiniteError: NaN or infinity in the loss or the weights; nothing is written for it.
        Interrupted: SIGTERM or Ctrl-C, its checkpoint written (a SystemExit, code 143 or 130).
    """
    require_one_process()
    images = open_run_images(config) if images is None else images
    config = resolve(config, images)
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
    """The parts of one run; `train` is the loop."""

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
        self.device = choose_device(config.efficiency.device)
        amp = config.efficiency.amp
        self.amp = amp == "bf16" or (amp == "auto" and self.device.type == "cuda")
        optim = config.optim
        self.plan = Plan.of(
            len(images),
            optim.batch_size,
            optim.accumulate,
            optim.epochs,
            config.seed,
            config.data.repeats,
            optim.steps,
        )
        self.fingerprint = "" if tokenizer is None else tokenizer.fingerprint()
        checkpoint = find_checkpoint(config, self.fingerprint, len(images))

        clusters = config.tokenizer.num_clusters
        model = create_model(
            config.method, config.model, images.image_size, clusters, seed=config.seed
        )
        if config.model.weights and checkpoint is None:
            say(f"encoder weights: {load_encoder_weights(model, config.model.weights).line()}")
        model.to(self.device).train()
        self.state = TrainState(
            model,
            create_optimizer(model, optim),
            ModelEmaV3(model, decay=optim.ema_decay) if optim.ema_decay else None,
            Window(clusters if tokenizer is not None else None, self.device),
        )
        if checkpoint is not None:
            load_state(self.state, checkpoint)
        self.tokenizer = None if tokenizer is None else tokenizer.to(self.device)
        self.called = torch.compile(model) if config.efficiency.compile else model
        self.mean = torch.tensor(config.data.mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(config.data.std, device=self.device).view(3, 1, 1)
        patch = int(model.patch_size)  # type: ignore[arg-type]
        self.batches = TrainingBatches(images, config.data, config.mask, patch, config.seed)
        self.peak = optim.absolute_lr(self.plan.effective_batch)
        self.warmup = optim.warmup_steps(self.plan.steps_per_epoch)

    def train(self) -> RunResult:
        """Run to the last step."""
        self.out.mkdir(parents=True, exist_ok=True)
        goes_on = self.state.step > 0
        listed = self.out / "skipped_files.txt"
        skipped = SkippedFiles(listed, self.images.broken, self.say, goes_on=goes_on)
        announce(self.config, self.plan, self.state, self.device, amp=self.amp, say=self.say)
        if self.state.step >= self.plan.total_steps:
            self.say(f"{self.out} is complete: {self.state.step} steps; nothing to do")
            return self._result()
        save_config(self.config, self.out / "config.json")
        if self.config.resume == "restart":
            for name in ("checkpoints", "eval", "figures"):  # a report shows what lies there
                shutil.rmtree(self.out / name, ignore_errors=True)
        remove_partial(self.out / "checkpoints")
        if self.tokenizer is not None:
            self.tokenizer.save(str(self.out / "tokenizer.safetensors"))
        advice = reading_advice(self.config.data, self.images)
        progress = Progress(self.config, self.plan, self.state.step, self.say, advice)
        with contextlib.closing(progress), stop_on_signals() as stop:
            self._loop(stop, skipped, progress)
        return self._result()

    def _loop(self, stop: StopFlag, skipped: SkippedFiles, progress: Progress) -> None:
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
        state.window.restart_clock()
        while state.step < plan.total_steps:
            lr = self._update(passes, skipped)
            epoch, in_epoch = divmod(state.step, plan.steps_per_epoch)
            every = log.checkpoint_every_steps
            done = state.step == plan.total_steps
            if done or state.step % log.interval(plan.total_steps) == 0:
                progress.write(self._row(lr))
            else:
                progress.sign_of_life(state.step)
            if (
                done
                or (every and state.step % every == 0)
                or (in_epoch == 0 and epoch % log.checkpoint_every_epochs == 0)
            ):
                self._save(lr)
            if in_epoch == 0 and self.on_epoch is not None:
                progress.note(state.step, self.on_epoch(epoch, state.model))
                state.model.train()
                state.window.restart_clock()
            if stop.signal_number:
                path = self._save(lr)
                message = (
                    f"stopped by signal {stop.signal_number} at step {state.step}; {path} written"
                )
                self.say(message if done else f"{message}; the same command goes on from there")
                raise Interrupted(stop.signal_number, message)

    def _update(self, passes: Iterator[Batch], skipped: SkippedFiles) -> float:
        """One update of the weights; returns its learning rate."""
        state, optim = self.state, self.config.optim
        lr = learning_rate(
            state.step,
            peak=self.peak,
            floor=optim.min_lr,
            warmup=self.warmup,
            total=self.plan.total_steps,
        )
        set_learning_rate(state.optimizer, lr)
        for _ in range(self.plan.accumulate):
            before = time.perf_counter()
            batch = next(passes)
            state.window.waited += time.perf_counter() - before
            skipped.add(batch.broken)
            masks = Masks(*(self._move(part) for part in batch.masks))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                result = forward_step(
                    self.called,
                    self.tokenizer,
                    self._move(batch.images),
                    masks,
                    self.mean,
                    self.std,
                    self.config.loss,
                )
            (result.loss / self.plan.accumulate).backward()
            state.window.add(result)
        if optim.clip_grad:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_grad)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.ema is not None:
            state.ema.update(state.model, step=state.step)
        return lr

    def _move(self, tensor: Any) -> Any:
        return None if tensor is None else tensor.to(self.device, non_blocking=True)

    def _row(self, lr: float) -> dict[str, Any]:
        """What happened since the last line; the next interval begins."""
        state, plan = self.state, self.plan
        row = {"step": state.step, "epoch": state.step / plan.steps_per_epoch, "lr": lr}
        row["images_seen"] = state.step * plan.effective_batch
        row |= state.window.metrics(plan.batch_size)
        if not math.isfinite(row["loss"]):
            raise NonFiniteError(self._non_finite(f"the loss is {row['loss']}", lr))
        state.last_row = row
        state.window.clear()
        return row

    def _save(self, lr: float) -> Path:
        state = self.state
        if not math.isfinite(state.window.mean_loss()):
            raise NonFiniteError(self._non_finite("the loss is not finite", lr))
        if not all_finite(state.model) or (state.ema is not None and not all_finite(state.ema)):
            raise NonFiniteError(self._non_finite("a weight is not finite", lr))
        return save_state(state, self.config, self.fingerprint, self.plan)

    def _non_finite(self, what: str, lr: float) -> str:
        last = self.out / "checkpoints" / "last.pt"
        good = str(last) if last.exists() else "none yet"
        return non_finite_message(what, self.state.step, lr, self.amp, good)

    def _result(self) -> RunResult:
        state = self.state
        loss = float(state.last_row.get("loss", math.nan))
        epoch = state.step // self.plan.steps_per_epoch
        return RunResult(self.out, state.step, epoch, loss, dict(state.last_row))
