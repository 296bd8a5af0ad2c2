"""What a run says before its first step: everything that was resolved, in numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from clustermim_fast.masking import Masker
from clustermim_fast.ranks import everyone
from clustermim_fast.train.batches import Plan
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.distributed import has_batch_norm
from clustermim_fast.train.sharding import is_sharded
from clustermim_fast.train.state import TrainState


def announce(
    config: TrainConfig,
    plan: Plan,
    state: TrainState,
    device: torch.device,
    *,
    dtype: torch.dtype | None,
    say: Callable[[str], None],
) -> None:
    """Say the network, the mask, the tokenizer, the batch, the learning rate and where it runs."""
    model: Any = state.model
    encoder = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    total = sum(p.numel() for p in model.parameters()) / 1e6
    rows, columns = model.grid
    say(
        f"{config.method} on {config.model.encoder}: {encoder:.2f} M parameters in the encoder, "
        f"{total:.2f} M in all; {rows} x {columns} patches of {config.model.patch_size} px"
    )
    masker = Masker(config.mask, model.grid, model.patch_size)
    replaced = f", {masker.num_replaced} shown as centroids" if masker.num_replaced else ""
    say(
        f"mask: {masker.num_masked} of {rows * columns} patches{replaced}, {config.mask.kind}; "
        f"normalisation: mean {config.data.mean}, std {config.data.std}"
    )
    if "tokens" in model.objective:
        say(f"tokenizer: K = {config.tokenizer.num_clusters}")
    peak = config.optim.absolute_lr(plan.effective_batch)
    precision = f"{dtype} autocast".removeprefix("torch.") if dtype else "float32"
    say(
        f"effective batch {plan.effective_batch} ({plan.batch_size} x {plan.accumulate}), "
        f"lr {peak:.3e}, {plan.steps_per_epoch} steps per epoch, {plan.total_steps} in all, "
        f"{config.optim.warmup_steps(plan.steps_per_epoch)} of warm-up; {device}, "
        f"{precision}, {torch.get_num_threads()} threads"
    )
    ranks = everyone().count
    if ranks > 1:
        sizes = ", ".join(str(size) for size in plan.parts(ranks))
        parts = "; each holds a part of the weights (FSDP2)" if is_sharded(config) else ""
        say(f"{ranks} ranks share each batch of {plan.batch_size}: {sizes}{parts}")
        if device.type == "cpu" and has_batch_norm(model):
            say(
                "batch norm sees the batch of one rank on the CPU: with another number of ranks "
                "the result differs"
            )
    if state.step:
        say(f"going on from step {state.step} of {plan.total_steps} in {config.out}")
