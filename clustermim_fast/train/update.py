"""`Update`: one change of the weights, by a global batch that ranks and forward passes share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clustermim_fast.masking import Masks
from clustermim_fast.optim import learning_rate, set_learning_rate
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers import Tokenizer
from clustermim_fast.train.batches import Batch, Plan
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.distributed import synchronised, wrap
from clustermim_fast.train.skipped import SkippedFiles
from clustermim_fast.train.state import TrainState
from clustermim_fast.train.step import ModelWithLoss
from clustermim_fast.train.stop import StopFlag, first_asked

Inputs = tuple[Tensor, Masks, Tensor | None]  # images, masks, tokens


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
        tokenizer: Tokenizer | None,
        device: torch.device,
    ) -> None:
        self.plan, self.state, self.device = plan, state, device
        self.optim = config.optim
        self.ranks = everyone()
        amp = config.efficiency.amp
        self.amp = amp == "bf16" or (amp == "auto" and device.type == "cuda")
        self.tokenizer = None if tokenizer is None else tokenizer.to(device)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in _mean_std(config))
        if config.efficiency.compile:
            state.model.compile()
        self.objective = ModelWithLoss(state.model, self.tokenizer, mean, std, config.loss)
        self.wrapped = wrap(self.objective, device)
        self.peak = self.optim.absolute_lr(plan.effective_batch)
        self.warmup = self.optim.warmup_steps(plan.steps_per_epoch)
        self._asked = torch.zeros(0)
        self._begun = False

    def __call__(self, passes: Iterator[Batch], skipped: SkippedFiles, stop: StopFlag) -> float:
        """Take the next batches of `passes`; returns the learning rate."""
        state = self.state
        lr = learning_rate(
            state.step,
            peak=self.peak,
            floor=self.optim.min_lr,
            warmup=self.warmup,
            total=self.plan.total_steps,
        )
        set_learning_rate(state.optimizer, lr)
        inputs = [self._take(passes, skipped) for _ in range(self.plan.accumulate)]
        loss = self._backward(inputs)
        loss, *asked = self.ranks.total(torch.cat([loss[None], stop.asked(self.device)])).split(1)
        self._asked = torch.cat(asked)
        if self.optim.clip_grad:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.optim.clip_grad)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.window.end_update(loss[0])
        state.step += 1
        if state.ema is not None:
            state.ema.update(state.model, step=state.step)
        return lr

    def stop_asked(self) -> int:
        """The signal that a rank got before this update's end, the same on all; waits for it."""
        return first_asked(self._asked)

    def _take(self, passes: Iterator[Batch], skipped: SkippedFiles) -> Inputs:
        """The next batch, on the device, with its tokens."""
        before = time.perf_counter()
        batch = next(passes)
        self.state.window.waited += time.perf_counter() - before
        skipped.add(batch.broken)
        images = self._move(batch.images)
        if images is batch.images and self.plan.accumulate > 1:
            images = images.clone()  # the reader writes its memory again for the next pass
        masks = Masks(*(self._move(part) for part in batch.masks))
        return images, masks, None if self.tokenizer is None else self.tokenizer(images)

    def _move(self, tensor: Any) -> Any:
        return None if tensor is None else tensor.to(self.device, non_blocking=True)

    def _backward(self, inputs: list[Inputs]) -> Tensor:
        """Gradients of all passes; this rank's part of the loss, float64 []."""
        counts = torch.stack([self.objective.counts(*parts) for parts in inputs]).double()
        total = self.ranks.total(counts.sum(0))
        # Gradients become means over the ranks: what each adds must count so many times more.
        shares = counts * self.ranks.count / total
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, (parts, share) in enumerate(zip(inputs, shares, strict=True), 1):
            # DDP learns its static graph from the first pass, and no_sync would keep it from that.
            with synchronised(self.wrapped, send=number == len(inputs) or not self._begun):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                    result = self.wrapped(*parts, share.unbind())
                result.loss.backward()
            loss += result.loss.detach()
            self.state.window.add(result)
        self._begun = True
        return loss / self.ranks.count


def _mean_std(config: TrainConfig) -> tuple[Any, Any]:
    return config.data.mean, config.data.std
