"""torch.compile of a run's model and loss."""

from __future__ import annotations

import torch
from torch import nn

from clustermim_fast import ops


def compile_step(objective: nn.Module, mode: str, device: torch.device) -> bool:
    """Compile calls of `objective` in place, for efficiency.compile; whether CUDA graphs replay
    them.
    """
    if mode == "off":
        return False
    if device.type == "cuda":
        ops.warmup(device)  # while torch compiles, kernels cannot be checked
    # All batches of a run have one shape, with as many masked patches.
    objective.compile(mode=mode, dynamic=False)
    return device.type == "cuda" and mode != "default"
