"""testing.compare: says yes to the same loss, no to another one, and measures both."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clustermim_fast.testing import compare

# Kineto looks for a GPU when a profile starts, and warns where there is none.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.profiler.*")


def linear_batch(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "input": torch.randn(4, 33, 24).to(dtype),
        "linear_weight": (torch.randn(50, 24) * 0.2).to(dtype),
        "linear_bias": torch.randn(50).to(dtype),
        "target": torch.randint(0, 50, (4, 32)),
        "mask": torch.rand(4, 32) < 0.75,
        "num_prefix_tokens": 1,
        "label_smoothing": 0.1,
    }


def masked_mean(batch: dict[str, Any]) -> torch.Tensor:
    """ClusterMIM's form: logits of every token, then the mean over the masked ones."""
    logits = F.linear(batch["input"], batch["linear_weight"], batch["linear_bias"])[:, 1:]
    rows = F.cross_entropy(
        logits.flatten(0, 1), batch["target"].flatten(), reduction="none", label_smoothing=0.1
    )
    mask = batch["mask"].flatten().float()
    return (rows * mask).sum() / mask.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_loss_is_safe_to_swap(dtype: torch.dtype, capsys: Any) -> None:
    result = compare(masked_mean, linear_batch(dtype), repeats=2)
    assert result.safe_to_swap, result
    assert list(result.ours) == ["loss", "d input", "d linear_weight", "d linear_bias"]
    assert (
        result.ours["d linear_weight"].relative
        <= 1.25 * result.theirs["d linear_weight"].relative + 1e-6
    )
    assert all(s > 0 for s in result.seconds)
    assert all(b > 0 for b in result.peak_bytes)
    assert "safe to swap: yes" in capsys.readouterr().out


def test_a_mean_over_all_tokens_is_another_quantity() -> None:
    def wrong(batch: dict[str, Any]) -> torch.Tensor:
        return masked_mean(batch) * batch["mask"].float().mean()

    result = compare(wrong, linear_batch(), repeats=1, verbose=False)
    assert not result.safe_to_swap
    assert any(r.startswith("loss: yours") and "another quantity" in r for r in result.reasons)
    assert "safe to swap: NO" in str(result)


def test_a_detached_gradient_is_seen() -> None:
    def wrong(batch: dict[str, Any]) -> torch.Tensor:
        loss = masked_mean(batch)
        return loss - 0.1 * batch["linear_bias"].sum() + 0.1 * batch["linear_bias"].sum().detach()

    result = compare(wrong, linear_batch(), repeats=1, verbose=False)
    assert not result.safe_to_swap
    assert [r.split(":")[0] for r in result.reasons] == ["d linear_bias"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_logits_with_class_and_token_weights(reduction: str) -> None:
    batch = {
        "logits": torch.randn(4, 32, 10),
        "target": torch.randint(-1, 10, (4, 32)),
        "ignore_index": -1,
        "weight": torch.rand(10) + 0.1,
        "token_weight": torch.rand(4, 32),
        "reduction": reduction,
    }

    def theirs(b: dict[str, Any]) -> torch.Tensor:
        rows = F.cross_entropy(
            b["logits"].flatten(0, 1), b["target"].flatten(), b["weight"], ignore_index=-1,
            reduction="none",
        )  # fmt: skip
        weights = b["token_weight"].flatten()
        if b["reduction"] == "sum":
            return (rows * weights).sum()
        target = b["target"].flatten()
        weights = torch.where(target >= 0, weights * b["weight"][target.clamp_min(0)], 0.0)
        return (rows * b["token_weight"].flatten()).sum() / weights.sum()

    assert compare(theirs, batch, repeats=1, verbose=False).safe_to_swap


def test_a_batch_without_an_answer_is_named_as_such() -> None:
    """With nothing counted the mean is nan: that is no fault of either loss."""
    batch = {"logits": torch.randn(3, 5), "target": torch.full((3,), -100)}
    result = compare(lambda b: F.cross_entropy(b["logits"], b["target"]), batch, repeats=1,
                     verbose=False)  # fmt: skip
    assert not result.safe_to_swap
    assert result.reasons == ["loss: not finite in float64 either; try a batch where it is"]


def test_refusals() -> None:
    batch = linear_batch()
    with pytest.raises(ValueError, match=r"it lacks input, linear_weight"):
        compare(masked_mean, {"target": batch["target"]})
    with pytest.raises(ValueError, match=r"batch has weights, which our op does not take"):
        compare(masked_mean, {**batch, "weights": 1})
    with pytest.raises(ValueError, match=r"reduction must be 'mean' or 'sum'"):
        compare(masked_mean, {**batch, "reduction": "none"})
    with pytest.raises(ValueError, match=r"must return a scalar tensor"):
        compare(lambda b: b["input"], batch)
    with pytest.raises(ValueError, match=r"gave no gradient to linear_weight, linear_bias"):
        compare(lambda b: b["input"].sum(), batch)


def test_the_profiler_says_nothing() -> None:
    """Without a GPU it calls that an ERROR, on stderr, amid the table."""
    call = (
        "import torch; from clustermim_fast.testing.peak_memory import peak_bytes\n"
        "print(peak_bytes(lambda: torch.zeros(1000), torch.device('cpu')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", call], capture_output=True, text=True, check=False, timeout=120
    )
    assert (result.stdout, result.stderr) == ("4000\n", "")
