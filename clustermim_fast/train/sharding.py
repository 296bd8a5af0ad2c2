"""FSDP2: of weights, gradients and the optimizer's state each rank keeps a part; files hold all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clustermim_fast.ranks import everyone
from clustermim_fast.train.config import TrainConfig


def is_sharded(config: TrainConfig) -> bool:
    """Whether a rank has only a part of the weights."""
    return config.efficiency.sharding == "fsdp" and everyone().count > 1


def shard(module: nn.Module, device: torch.device) -> None:
    """Leave this rank a part of each parameter, in place; an optimizer is made afterwards.

    Blocks are put together for their own forward and backward passes, all other parameters for the
    whole of `module`, which must be what is called.

    Raises:
        ValueError: this torch has no `fully_shard`.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ValueError(
            "efficiency.sharding: fsdp needs torch 2.6 or newer (fully_shard), got torch "
            f"{torch.__version__}; take efficiency.sharding=ddp"
        ) from error
    mesh = init_device_mesh(device.type, (everyone().count,))
    for name, part in list(module.named_modules()):
        if name.endswith("blocks"):
            for block in part.children():
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is sharded, every rank calls this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(state: Any) -> Any:
    """A state of nested dicts and lists with sharded tensors put together one by one, on the CPU of
    rank 0; None in their place elsewhere. Every rank calls it.
    """
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    if hasattr(state, "full_tensor"):
        whole = state.full_tensor()
        return whole.cpu() if everyone().rank == 0 else None
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state of whole tensors, numbered as `optimizer.state_dict()`; every rank calls it.

    `torch.distributed.checkpoint.state_dict` names them by parameter instead, and makes a step of
    an optimizer that made none.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(value: Any, parameter: Any) -> Any:
        if not hasattr(parameter, "placements") or value.shape != parameter.shape:
            return value  # not sharded, or the count of steps
        from torch.distributed.tensor import distribute_tensor

        mesh, places = parameter.device_mesh, parameter.placements
        return distribute_tensor(value.to(parameter.device), mesh, places)

    state = {
        number: {name: part(value, parameters[number]) for name, value in entry.items()}
        for number, entry in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})
