"""Where numbers stop being finite: a batch is run again and every module is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clustermim_fast.train.sharding import local

SHOWN = 8  # sample ids of a message


def where_not_finite(
    module: nn.Module,
    arguments: tuple[Any, ...],
    samples: Tensor,
    anywhere: Callable[[bool], bool] = bool,
) -> str:
    """What of one forward and backward pass is not finite first, and of which samples; "" for none.

    Weights first, then outputs of modules in the order they run, the loss, and gradients in theirs.

    Args:
        module: returns what has a `loss`; its gradients are lost.
        arguments: of a call.
        samples: int64 [B], the ids of the images.
        anywhere: whether something is so on any of the ranks that run the module together.
    """
    weights = module.named_parameters()
    bad = [name for name, weight in weights if not bool(local(weight.detach()).isfinite().all())]
    if anywhere(bool(bad)):
        return f"the weight {_plain(bad[0])} is not finite" if bad else ""
    found: list[tuple[str, Tensor]] = []

    def look(what: str, tensor: Tensor) -> None:
        if not found and not bool(tensor.detach().isfinite().all()):
            found.append((what, tensor.detach()))

    def watch(name: str, part: nn.Module) -> Any:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            for tensor in _tensors(output):
                look(f"the output of {name}", tensor)
                if tensor.requires_grad:
                    tensor.register_hook(lambda g: look(f"the gradient at the output of {name}", g))

        return part.register_forward_hook(hook)

    handles = [watch(_plain(name), part) for name, part in module.named_modules() if name]
    try:
        loss = module._call_impl(*arguments).loss  # not compiled, which would call no hooks
        look("the loss", loss)
        if not anywhere(bool(found)):
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        module.zero_grad(set_to_none=True)
    if not found:
        return ""
    what, tensor = found[0]
    ids = samples.tolist()
    if tensor.dim() and len(tensor) == len(ids):
        of = (~tensor.isfinite()).flatten(1).any(1) if tensor.dim() > 1 else ~tensor.isfinite()
        ids = [number for number, here in zip(ids, of.tolist(), strict=True) if here]
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{what} is not finite first, of samples {ids[:SHOWN]}{more}"


def _plain(name: str) -> str:
    return name.removeprefix("model.")


def _tensors(output: Any) -> Iterator[Tensor]:
    """Floating tensors of what a module returns."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
