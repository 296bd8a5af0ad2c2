"""testing.compare as a newcomer calls it: under autocast, with a random loss, with mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clustermim_fast.testing import compare

# Kineto looks for a GPU when a profile starts, and warns where there is none.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.profiler.*")


def linear_batch() -> dict[str, Any]:
    return {
        "input": torch.randn(4, 33, 64),
        "linear_weight": torch.randn(50, 64) * 0.2,
        "linear_bias": torch.randn(50),
        "target": torch.randint(0, 50, (4, 32)),
        "mask": torch.rand(4, 32) < 0.75,
        "num_prefix_tokens": 1,
    }


def masked_rows(batch: dict[str, Any]) -> torch.Tensor:
    """BEiT's form: the logits of the masked tokens."""
    hidden = batch["input"][:, 1:][batch["mask"]]
    logits = F.linear(hidden, batch["linear_weight"], batch["linear_bias"])
    return F.cross_entropy(logits, batch["target"][batch["mask"]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loop_under_autocast(dtype: torch.dtype) -> None:
    batch = linear_batch()
    with torch.autocast("cpu", dtype):
        result = compare(masked_rows, batch, repeats=1, verbose=False)
        scaled = compare(lambda b: 0.7 * masked_rows(b), batch, repeats=1, verbose=False)
    assert result.safe_to_swap, result
    assert result.theirs["d input"].relative > 1e-4  # it did run in 16 bits
    assert result.ours["loss"].relative < 1e-6  # the truth is that of the rounded operands
    assert not scaled.safe_to_swap


def test_autocast_inside_of_the_loss_alone_is_told_where_it_belongs() -> None:
    def theirs(batch: dict[str, Any]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return masked_rows(batch)

    result = compare(theirs, linear_batch(), repeats=1, verbose=False)
    assert not result.safe_to_swap
    assert "inside the same autocast" in result.reasons[-1]
    other = compare(lambda b: 2 * masked_rows(b), linear_batch(), repeats=1, verbose=False)
    assert not any("autocast" in reason for reason in other.reasons)


def test_a_random_loss_is_named_as_such() -> None:
    def theirs(batch: dict[str, Any]) -> torch.Tensor:
        return masked_rows({**batch, "input": F.dropout(batch["input"], 0.5)})

    result = compare(theirs, linear_batch(), repeats=1, verbose=False)
    assert len(result.reasons) == 4
    assert all("from one run to the next" in reason for reason in result.reasons)


def test_nan_of_theirs_is_not_randomness() -> None:
    result = compare(lambda b: masked_rows(b) * torch.nan, linear_batch(), repeats=1, verbose=False)
    assert all("another quantity" in reason for reason in result.reasons)
    assert len(result.reasons) == 4


def test_the_callers_tensors_are_never_written() -> None:
    def theirs(batch: dict[str, Any]) -> torch.Tensor:
        """The idiom of BERT's collators, in place."""
        batch["target"][~batch["mask"]] = -100
        batch["mask"].fill_(True)
        logits = F.linear(batch["input"][:, 1:], batch["linear_weight"], batch["linear_bias"])
        return F.cross_entropy(logits.flatten(0, 1), batch["target"].flatten())

    batch = linear_batch()
    before = {name: value.clone() for name, value in batch.items() if torch.is_tensor(value)}
    assert compare(theirs, batch, repeats=1, verbose=False).safe_to_swap
    for name, value in before.items():
        assert torch.equal(batch[name], value), name


def test_under_no_grad() -> None:
    with torch.no_grad():
        assert compare(masked_rows, linear_batch(), repeats=1, verbose=False).safe_to_swap


def test_mistakes_are_named() -> None:
    batch = linear_batch()
    with pytest.raises(TypeError, match=r"compare: batch must be a dict, got tuple"):
        compare(masked_rows, (batch["input"], batch["target"]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"repeats must be >= 1, got 0"):
        compare(masked_rows, batch, repeats=0)
    with pytest.raises(ValueError, match=r"without a graph"):
        compare(lambda b: masked_rows(b).detach(), batch)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"linear_weight": torch.randn(64, 50)}, ValueError, "linear_weight must be [K, d]"),
        ({"num_prefix_tokens": 0}, ValueError, "target must be of shape (4, 33)"),
        ({"target": torch.full((4, 32), -1)}, IndexError, "target must be in [0, 50)"),
        ({"input": [1.0]}, TypeError, "input must be a torch.Tensor, got list"),
        ({"input": torch.ones(4, 33, 64).long()}, TypeError, "input must be of dtype"),
    ],
)
def test_what_the_op_refuses_the_op_explains(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before anything else runs on it, the definition in float64 included."""
    with pytest.raises(error) as raised:
        compare(masked_rows, {**linear_batch(), **change})
    assert message in str(raised.value)
