"""Problems for masked_cross_entropy, their truth, and the comparison of the two."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.loss_checks import array, assert_within, tokens_mask
from tests.ops.loss_truth import logits_truth


def make(
    dtype: torch.dtype = torch.float32,
    batch: int = 3,
    tokens: int = 10,
    masked: int = 7,
    classes: int = 13,
    spread: float = 2.0,
) -> dict[str, Any]:
    z = (torch.randn(batch, tokens, classes) * spread).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (batch, tokens))
    return {"z": z, "target": target, "mask": tokens_mask(batch, tokens, masked)}


def truth_of(d: dict[str, Any], **options: Any) -> Any:
    z = array(d["z"])
    for name in ("token_weight", "weight"):
        if options.get(name) is not None:
            options[name] = array(options[name]).reshape(-1)
    return logits_truth(
        z.reshape(-1, z.shape[-1]),
        d["target"].reshape(-1).numpy(),
        None if d["mask"] is None else (d["mask"] != 0).reshape(-1).numpy(),
        unit=2.0**-53 if d["z"].dtype == torch.float64 else 2.0**-24,
        **options,
    )


def check_all(d: dict[str, Any], loss: torch.Tensor, truth: Any) -> None:
    shape = loss.shape
    assert_within("loss", loss, truth.loss.reshape(shape), truth.loss_bound.reshape(shape))
    grad = d["z"].grad
    assert grad.dtype == d["z"].dtype
    assert_within("dZ", grad, truth.dz.reshape(grad.shape), truth.dz_bound.reshape(grad.shape))
