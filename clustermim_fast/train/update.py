"""`Update`: one change of the weights, by a global batch that ranks and forward passes share."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clustermim_fast.masking import Masks
from clustermim_fast.optim import learning_rate, set_learning_rate
from clustermim_fast.ranks import everyone
from clustermim_fast.train.batches import Batch, Plan, TrainingBatches
from clustermim_fast.train.compiling import compile_step
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.copies import pinned
from clustermim_fast.train.diagnose import where_not_finite
from clustermim_fast.train.distributed import synchronised, wrap
from clustermim_fast.train.precision import choose_dtype
from clustermim_fast.train.sharding import full, is_sharded
from clustermim_fast.train.skipped import SkippedFiles
from clustermim_fast.train.state import TrainState
from clustermim_fast.train.step import ModelWithLoss, StepResult
from clustermim_fast.train.stop import NonFiniteBatch, StopFlag, first_asked


class Inputs(NamedTuple):
    """Of a forward pass, on the device; samples int64 [B] on the CPU."""

    images: Tensor
    masks: Masks
    tokens: Tensor | None
    samples: Tensor


class Update:
    """Called with batches, it makes one step of the optimizer.

    The loss is a mean over all items (masked patches whose token counts, pixels, images) of all
    passes and ranks: they are counted before the first pass, and each pass gets its share. So any
    split of a batch gives one gradient, but for rounding. To count, the tokens of all passes of an
    update are made first; their images wait on the device as bytes.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        state: TrainState,
        objective: ModelWithLoss,
        batches: TrainingBatches,
        device: torch.device,
    ) -> None:
        self.plan, self.state, self.device = plan, state, device
        self.batches = batches
        self.optim = config.optim
        self.ranks = everyone()
        self.dtype = choose_dtype(config.efficiency.amp, device)
        self.objective, self.tokenizer = objective, objective.tokenizer
        self.replays = compile_step(objective, config.efficiency.compile, device)
        self.sharded = is_sharded(config)  # then it sends gradients by itself
        self.wrapped = objective if self.sharded else wrap(objective, device)
        self.peak = self.optim.absolute_lr(plan.effective_batch)
        self.warmup = self.optim.warmup_steps(plan.steps_per_epoch)
        self._asked = torch.zeros(0)
        self._begun = False
        # Running statistics of batch norms, which a forward pass changes already.
        self.buffers = [*state.model.buffers()] if self.optim.skip_nonfinite else []
        # Elsewhere the host learns at its lines of progress that a loss was not finite, and the
        # device makes no step from then on; float16 waits for its scale anyway.
        waits = self.optim.skip_nonfinite > 0 or state.scaler.is_enabled()
        self._waits = waits or device.type == "cpu"
        self._broken_at = torch.zeros((), dtype=torch.int64, device=device)  # update; 0: none

    def __call__(self, passes: Iterator[Batch], skipped: SkippedFiles, stop: StopFlag) -> float:
        """Take the next batches of `passes`; returns the learning rate.

        Raises NonFiniteBatch on every rank, before the weights have changed.
        """
        state = self.state
        lr = self._set_learning_rate()
        if self.replays:  # what graphs wrote stays until here: gradients and losses of all passes
            torch.compiler.cudagraph_mark_step_begin()
        inputs = [self._take(self._next(passes, skipped)) for _ in range(self.plan.accumulate)]
        before = [buffer.clone() for buffer in self.buffers]
        shares = self._shares(inputs)
        results = self._backward(inputs, shares)
        part = torch.stack([result.loss.detach().double() for result in results]).sum()
        both = torch.cat([part[None] / self.ranks.count, stop.asked(self.device)])
        loss, self._asked = self.ranks.total(both).tensor_split([1])
        finite = loss.isfinite()
        state.scaler.unscale_(state.optimizer)
        if self.optim.clip_grad or self.optim.skip_nonfinite:
            most = self.optim.clip_grad or math.inf
            norm = full(torch.nn.utils.clip_grad_norm_(state.model.parameters(), most))
            if not state.scaler.is_enabled():  # which leaves out what overflows
                finite = finite & norm.isfinite()
        state.step += 1
        if self._waits and not bool(finite):
            state.optimizer.zero_grad(set_to_none=True)
            for buffer, value in zip(self.buffers, before, strict=True):
                buffer.copy_(value)
            state.scaler.update(state.scaler.get_scale())  # as it was
            state.skipped += 1
            if state.skipped > self.optim.skip_nonfinite:
                raise NonFiniteBatch(self._explain(inputs, shares))
            return lr
        if not self._waits:
            fails = (self._broken_at == 0) & ~finite[0]
            self._broken_at = torch.where(fails, state.step, self._broken_at)
            # What GradScaler sets for fused optimizers: where it is 1 nothing changes.
            state.optimizer.found_inf = (self._broken_at > 0).float()  # type: ignore[attr-defined]
        for result in results:
            state.window.add(result)
        state.window.end_update(loss[0])
        taken = self._step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None and taken:
            state.ema.update(state.model, step=state.step)
        return lr

    def _set_learning_rate(self) -> float:
        lr = learning_rate(
            self.state.step,
            peak=self.peak,
            floor=self.optim.min_lr,
            warmup=self.warmup,
            total=self.plan.total_steps,
        )
        set_learning_rate(self.state.optimizer, lr)
        return lr

    def _step(self) -> bool:
        """The optimizer's step, or a smaller loss scale where gradients overflowed."""
        state, scaler = self.state, self.state.scaler
        before = scaler.get_scale()  # waits for the device, in float16 alone
        scaler.step(state.optimizer)
        scaler.update()
        taken = scaler.get_scale() >= before
        state.overflows += not taken
        if scaler.get_scale() < 1:
            raise NonFiniteBatch(
                "gradients are not finite in float16 however small the loss scale (efficiency.amp="
                "bf16 or off may help)"
            )
        return taken

    def require_finite(self) -> None:
        """Wait for the device; NonFiniteBatch on every rank, with the weights and the number of
        steps of the first update whose loss or gradient was not finite.
        """
        broken_at = int(self._broken_at)
        if not broken_at:
            return
        self.state.step = broken_at - 1
        self._set_learning_rate()
        self.state.step = broken_at
        keys = self.plan.keys(broken_at - 1, self.ranks.rank, self.ranks.count)
        again = itertools.islice(keys, self.plan.accumulate)
        inputs = [self._take(self.batches[key]) for key in again]
        raise NonFiniteBatch(self._explain(inputs, self._shares(inputs)))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None
        )

    def _explain(self, inputs: list[Inputs], shares: Tensor) -> str:
        """The first thing that is not finite, from the first rank that finds one."""
        together = self._anywhere if self.sharded else bool  # else each runs its own
        for parts, share in zip(inputs, shares, strict=True):
            arguments = (*parts[:3], share.unbind())
            with self._autocast():
                found = where_not_finite(self.objective, arguments, parts.samples, together)
            for text in self.ranks.texts(found):
                if text:
                    return text
        return "the gradient's norm is not finite"

    def _anywhere(self, here: bool) -> bool:
        return bool(self.ranks.total(torch.tensor([float(here)])))

    def stop_asked(self) -> int:
        """The signal that a rank got before this update's end, the same on all; waits for it."""
        return first_asked(self._asked)

    def _next(self, passes: Iterator[Batch], skipped: SkippedFiles) -> Batch:
        before = time.perf_counter()
        batch = next(passes)
        self.state.window.waited += time.perf_counter() - before
        skipped.add(batch.broken)
        return batch

    def _take(self, batch: Batch) -> Inputs:
        """A batch on the device, with its tokens."""
        images = self._move(batch.images)
        if self.device.type == "cpu" and self.plan.accumulate > 1:
            images = images.clone()  # the reader writes its memory again for the next pass
        masks = Masks(*(self._move(part) for part in batch.masks))
        tokens = None if self.tokenizer is None else self.tokenizer(images)
        return Inputs(images, masks, tokens, batch.samples)

    def _move(self, tensor: Any) -> Any:
        if tensor is None or tensor.device == self.device:
            return tensor
        return pinned(tensor).to(self.device, non_blocking=True)

    def _shares(self, inputs: list[Inputs]) -> Tensor:
        """What the means of each pass are of the update's, float64 [passes, terms]."""
        counts = torch.stack([self.objective.counts(*parts[:3]) for parts in inputs]).double()
        total = self.ranks.total(counts.sum(0))
        # Gradients become means over the ranks: what each adds must count so many times more.
        return counts * self.ranks.count / total

    def _backward(self, inputs: list[Inputs], shares: Tensor) -> list[StepResult]:
        """Gradients of all passes, and what they returned."""
        results = []
        for number, (parts, share) in enumerate(zip(inputs, shares, strict=True), 1):
            # DDP learns its static graph from the first pass, and no_sync would keep it from that.
            with synchronised(self.wrapped, send=number == len(inputs) or not self._begun):
                with self._autocast():
                    result = self.wrapped(*parts[:3], share.unbind())
                self.state.scaler.scale(result.loss).backward()
            results.append(result._replace(loss=result.loss.detach()))
        self._begun = True
        return results
