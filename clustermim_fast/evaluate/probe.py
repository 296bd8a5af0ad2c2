"""Probes on frozen tokens: a pooling, a BatchNorm without parameters, a linear classifier.

Learning rates are swept in one pass: heads side by side read the same batches, and each is what
training it alone would give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from clustermim_fast.optim import learning_rate

from .poolings import Linears, PerHead

__all__ = ["Probe", "ProbeTraining", "fit_probes", "predict_probe"]


@dataclass(frozen=True)
class ProbeTraining:
    """How probes are trained; defaults are the protocol of "Beyond [cls]" but for the batch.

    Attributes:
        epochs, warmup_epochs: the paper's; linear warm-up, then half a cosine to 0, per update.
        batch_size: the paper's 16,384 is larger than many a data set; at 1,024, 50,000 images make
            49 updates an epoch, between the paper's 78 and what a batch of its size would leave.
            The last images of an epoch's order that fill no batch wait for the next.
        optimizer: "lars" (momentum 0.9, trust 0.001, matrices only) or "adamw".
        weight_decay: on matrices only.
        batch_norm: BatchNorm1d(affine=False, eps=1e-6) before the classifier.
    """

    epochs: int = 90
    warmup_epochs: float = 10.0
    batch_size: int = 1024
    optimizer: str = "lars"
    weight_decay: float = 0.0
    batch_norm: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"epochs, batch_size: expected at least 1 and 2, got {self.epochs}, "
                f"{self.batch_size}"
            )
        if not 0 <= self.warmup_epochs < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                "warmup_epochs, weight_decay: expected numbers from 0, got "
                f"{self.warmup_epochs}, {self.weight_decay}"
            )
        if self.optimizer not in ("lars", "adamw"):
            raise ValueError(f'optimizer: expected "lars" or "adamw", got {self.optimizer!r}')


class Probe(nn.Module):
    """x [B, T, D] (or rows [B, D] where there is no pooling to learn) -> logits [B, heads, C].

    BatchNorm1d(affine=False, eps=1e-6), then nn.Linear as torch initialises it, as released.
    """

    def __init__(
        self,
        pooling: nn.Module | None,
        dim: int,
        classes: int,
        heads: int,
        *,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.pooling = pooling
        # One norm over the channels of all heads is one norm a head.
        channels = dim * (heads if pooling else 1)
        norm = nn.BatchNorm1d(channels, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.norm: nn.Module = norm
        self.classifier = Linears(dim, classes, heads)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(self.pooling(x).flatten(1) if self.pooling else x)
        return self.classifier(rows.unflatten(1, (-1, 1, self.dim)))[:, :, 0]

    def num_parameters(self) -> int:
        """Trained numbers of one head."""
        return sum(p.numel() for parameters in self.per_head()[:1] for p in parameters)

    def per_head(self) -> list[list[nn.Parameter]]:
        """The Parameters of each head."""
        lists = [module for module in self.modules() if isinstance(module, PerHead)]
        return [
            [p for part in lists for p in part[head].parameters()] for head in range(len(lists[0]))
        ]


def fit_probes(
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    poolings: Mapping[str, Callable[[int], nn.Module] | None],
    rates: Mapping[str, Sequence[float]],
    training: ProbeTraining,
    *,
    rows: Tensor | None = None,
    seed: int = 0,
    device: str = "cpu",
    title: str | None = None,
) -> dict[str, Probe]:
    """Train probes by name, a head for each of its rates, all over the same batches.

    Args:
        inputs: by name, tokens [N, T, D] or rows [N, D] of any floating dtype; one tensor may serve
            several names and is then gathered once a batch.
        labels: int64 [N], class indices from 0.
        poolings: by name, heads -> module from [B, T, D] to [B, heads, D]; None: rows as they are.
        rates: by name, base learning rates for 256 images; the rate is base * batch / 256.
        rows: int64, the only rows that are used; None: all.
        seed: of the first weights and of the order of the batches.

    Raises ValueError for fewer than two rows.
    """
    rows = torch.arange(len(labels)) if rows is None else rows
    if len(rows) < 2:
        raise ValueError(f"train: expected at least two images for a probe, got {len(rows)}")
    classes = int(labels.max()) + 1
    probes: dict[str, Probe] = {}
    for name, make in poolings.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads, dim = len(rates[name]), inputs[name].shape[-1]
            pooling = make(heads) if make else None
            probe = Probe(pooling, dim, classes, heads, batch_norm=training.batch_norm)
        probes[name] = probe.to(device).train()
    batch_size = min(training.batch_size, len(rows))
    updates = len(rows) // batch_size
    optimizer = _optimizer(probes, rates, training, batch_size / 256)
    gather = _Gather(inputs, batch_size, device)
    order = torch.Generator().manual_seed(seed)
    warmup = round(min(training.warmup_epochs, training.epochs - 1) * updates)
    for epoch in tqdm(range(training.epochs), title, disable=title is None, leave=False):
        shuffled = rows[torch.randperm(len(rows), generator=order)]
        for update, chosen in enumerate(shuffled.split(batch_size)[:updates]):
            share = learning_rate(
                epoch * updates + update,
                peak=1.0,
                floor=0.0,
                warmup=warmup,
                total=training.epochs * updates,
            )
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            _update(probes, optimizer, gather(chosen), labels[chosen].to(device))
    return {name: probe.eval() for name, probe in probes.items()}


class _Gather:
    """Batches of rows by input name, float32 on the device, in memory that is used again: fresh
    memory for each batch costs as much as the probes' arithmetic."""

    def __init__(self, inputs: Mapping[str, Tensor], batch_size: int, device: str) -> None:
        self.inputs = inputs
        self.buffers = {
            id(x): (
                torch.empty((batch_size, *x.shape[1:]), dtype=x.dtype),
                torch.empty((batch_size, *x.shape[1:]), device=device),
            )
            for x in inputs.values()
        }

    def __call__(self, chosen: Tensor) -> dict[str, Tensor]:
        for x in {id(x): x for x in self.inputs.values()}.values():
            rows, batch = self.buffers[id(x)]
            batch.copy_(torch.index_select(x, 0, chosen, out=rows))
        return {name: self.buffers[id(x)][1] for name, x in self.inputs.items()}


def _update(
    probes: Mapping[str, Probe],
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, Tensor],
    truth: Tensor,
) -> None:
    loss = torch.zeros((), device=truth.device)
    for name, probe in probes.items():
        logits = probe(batch[name])
        heads = logits.shape[1]
        # The sum over heads of each one's mean: no head sees another's.
        loss = loss + heads * F.cross_entropy(logits.flatten(0, 1), truth.repeat_interleave(heads))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _optimizer(
    probes: Mapping[str, Probe],
    rates: Mapping[str, Sequence[float]],
    training: ProbeTraining,
    scale: float,
) -> torch.optim.Optimizer:
    """timm's, with two groups a head: matrices, and the rest without decay or trust ratio."""
    lars = training.optimizer == "lars"
    groups = []
    for name, probe in probes.items():
        for base, parameters in zip(rates[name], probe.per_head(), strict=True):
            for matrices in (True, False):
                group = {
                    "params": [p for p in parameters if (p.ndim > 1) == matrices],
                    "weight_decay": training.weight_decay if matrices else 0.0,
                    "peak": base * scale,
                }
                # timm leaves the trust ratio out where nothing decays, unless told.
                groups.append(group | ({"always_adapt": matrices} if lars else {}))
    return create_optimizer_v2(groups, opt=training.optimizer, lr=0.0, momentum=0.9)


@torch.no_grad()
def predict_probe(
    probe: Probe, inputs: Tensor, rows: Tensor | None = None, *, batch_size: int = 2048
) -> Tensor:
    """Predicted class index of each row by each head, int64 [N, heads], on the CPU."""
    rows = torch.arange(len(inputs)) if rows is None else rows
    device = next(probe.parameters()).device
    return torch.cat(
        [
            probe(inputs[chosen].to(device).float()).argmax(-1).cpu()
            for chosen in rows.split(batch_size)
        ]
    )
