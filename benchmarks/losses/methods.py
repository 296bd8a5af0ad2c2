"""Ours and its peers: loss and gradients of one problem, each in the form that suits it best.

Every function takes the tensors of ``Case.tensors`` and returns the loss. What it computes from is
[cls] and all tokens, as a decoder gives them; picking the masked ones is part of its work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from clustermim_fast import ops

Tensors = dict[str, Any]
Loss = Callable[[Tensors], torch.Tensor]


def ours(t: Tensors) -> torch.Tensor:
    return ops.masked_linear_cross_entropy(
        t["x"],
        t["w"],
        t["target"],
        t["mask"],
        linear_bias=t["b"],
        label_smoothing=t["label_smoothing"],
        num_prefix_tokens=1,
    )


def clustermim(t: Tensors) -> torch.Tensor:
    """The published model's: log-probabilities of all tokens, [cls] too, then the masked mean."""
    logits = F.linear(t["x"], t["w"], t["b"])[:, 1:]
    log_p = F.log_softmax(logits, dim=-1)
    rows = -log_p.gather(-1, t["target"].unsqueeze(-1)).squeeze(-1)
    e = t["label_smoothing"]
    if e:
        rows = (1 - e) * rows - e * log_p.mean(-1)
    mask = t["mask"].to(rows.dtype)
    return (rows * mask).sum() / mask.sum()


def masked(t: Tensors) -> torch.Tensor:
    """BEiT's: the masked tokens picked before the classifier."""
    logits = F.linear(t["x"][:, 1:][t["mask"]], t["w"], t["b"])
    return F.cross_entropy(logits, t["target"][t["mask"]], label_smoothing=t["label_smoothing"])


def ignore_index(t: Tensors) -> torch.Tensor:
    """Logits of all tokens, the unmasked ones' target ignored."""
    logits = F.linear(t["x"][:, 1:], t["w"], t["b"]).flatten(0, 1)
    target = torch.where(t["mask"], t["target"], -100).flatten()
    return F.cross_entropy(logits, target, label_smoothing=t["label_smoothing"])


def _picked(t: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked rows and their targets by index, as compaction outside of a compiled graph does it."""
    listed = t["mask"].flatten().nonzero().squeeze(1)
    x = t["x"][:, 1:].flatten(0, 1).index_select(0, listed)
    return x, t["target"].flatten().index_select(0, listed)


def _linear_and_loss(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, target: torch.Tensor, e: float
) -> torch.Tensor:
    return F.cross_entropy(F.linear(x, w, b).float(), target, label_smoothing=e)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _compacted() -> Loss:
    """Cut cross-entropy's own compiled form: rows by index, then linear and loss compiled."""
    head = _compiled(_linear_and_loss)

    def run(t: Tensors) -> torch.Tensor:
        x, target = _picked(t)
        return head(x, t["w"], t["b"], target, t["label_smoothing"])

    return run


def _torchs_own() -> Loss:
    """F.linear_cross_entropy in chunks, on the masked rows."""
    options = torch.nn.LinearCrossEntropyOptions()

    def run(t: Tensors) -> torch.Tensor:
        x, target = _picked(t)
        return F.linear_cross_entropy(
            x, t["w"], target, linear_bias=t["b"], label_smoothing=t["label_smoothing"],
            options=options,
        )  # fmt: skip

    return run


@dataclass(frozen=True)
class Method:
    """A name for the tables, a key for ``--peers``, and what makes the function, once a case."""

    key: str
    name: str
    make: Callable[[], Loss]
    missing: str = ""


METHODS = (
    Method("ours", "ours", lambda: ours),
    Method("clustermim", "ClusterMIM, eager", lambda: clustermim),
    Method("masked", "masked, eager", lambda: masked),
    Method("ignore", "ignore_index, eager", lambda: ignore_index),
    Method("clustermim-compiled", "ClusterMIM, compiled", lambda: _compiled(clustermim)),
    Method("masked-compiled", "masked, compiled", lambda: _compiled(masked)),
    Method("ignore-compiled", "ignore_index, compiled", lambda: _compiled(ignore_index)),
    Method("compacted", "rows by index, compiled (CCE)", _compacted),
    Method(
        "torch-lce",
        "F.linear_cross_entropy, chunks",
        _torchs_own,
        missing="" if hasattr(F, "linear_cross_entropy") else "this torch has none",
    ),
)


def step(loss_function: Loss, tensors: Tensors) -> list[torch.Tensor]:
    """Loss and the gradients of x, w and b; the leaves are the tensors themselves."""
    leaves = [tensors[name] for name in "xwb"]
    loss = loss_function(tensors)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def three_products(tensors: Tensors) -> Callable[[], Any]:
    """The floor: the matrix products of forward and backward, of rows that are already picked."""
    x, w = tensors["x"][:, 1:][tensors["mask"]].detach(), tensors["w"].detach()

    def run() -> Any:
        z = x @ w.T
        return z @ w, z.T @ x

    return run
