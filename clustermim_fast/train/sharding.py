"""FSDP2: of weights, gradients and the optimizer's state each rank keeps a part; files hold all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clustermim_fast.ranks import everyone
from clustermim_fast.train.config import TrainConfig

_ON_RANK_0 = {"full_state_dict": True, "cpu_offload": True}


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


def model_state(module: nn.Module) -> dict[str, Any]:
    """Whole tensors; of a sharded module on the CPU of rank 0, nothing elsewhere. All ranks call
    it.
    """
    if not _has_parts(module):
        return module.state_dict()
    dcp = _dcp()
    return dcp.get_model_state_dict(module, options=dcp.StateDictOptions(**_ON_RANK_0))


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The same of an optimizer of `module`, in which parameters have numbers, sharded or not."""
    if not _has_parts(module) or not optimizer.state:  # dcp would make a step, to have a state
        return optimizer.state_dict()
    dcp = _dcp()
    options = dcp.StateDictOptions(**_ON_RANK_0)
    state = dcp.get_optimizer_state_dict(module, optimizer, options=options)
    numbers = {name: number for number, name in enumerate(_names(module, optimizer))}
    return _renamed(state, numbers) if state else {}


def load_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Load what `optimizer_state` returned on rank 0; all ranks call it, with all of it."""
    if not _has_parts(module) or not state["state"]:
        optimizer.load_state_dict(state)
        for parameter, entry in optimizer.state.items():
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # The fused step pairs elements by their place in memory (channels-last).
                    entry[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        return
    dcp = _dcp()
    named = _renamed(state, dict(enumerate(_names(module, optimizer))))
    options = dcp.StateDictOptions(full_state_dict=True)
    dcp.set_optimizer_state_dict(module, optimizer, named, options=options)


def whole(module: nn.Module, create: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """`module`; of a sharded one a copy on rank 0, in what `create` returns. All ranks call it."""
    if not _has_parts(module):
        return module
    state = model_state(module)
    if everyone().rank > 0:
        return module
    copy = create()
    copy.load_state_dict(state)
    return copy.to(device)


def _has_parts(module: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def _dcp() -> Any:
    from torch.distributed.checkpoint import state_dict  # not in a torch without torch.distributed

    return state_dict


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Of parameters, in the order of their numbers."""
    name_of = {parameter: name for name, parameter in module.named_parameters()}
    return [name_of[p] for group in optimizer.param_groups for p in group["params"]]


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """The state of an optimizer under other names of its parameters."""
    groups = [{**g, "params": [names[p] for p in g["params"]]} for g in state["param_groups"]]
    return {"state": {names[p]: v for p, v in state["state"].items()}, "param_groups": groups}
