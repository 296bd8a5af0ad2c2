"""What a newcomer's first mistakes are told; and shapes alone, on meta tensors."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend

HIDDEN, WEIGHT = torch.randn(2, 9, 6), torch.randn(5, 6)
TARGET, MASK = torch.randint(0, 5, (2, 8)), torch.rand(2, 8) < 0.6


def test_forgotten_prefix_tokens() -> None:
    with pytest.raises(ValueError, match=r"\(2, 9\) .*num_prefix_tokens in front .* no target"):
        ops.masked_linear_cross_entropy(HIDDEN, WEIGHT, TARGET, MASK)


def test_logits_with_the_classes_in_the_middle() -> None:
    with pytest.raises(ValueError, match="classes stand last"):
        ops.masked_cross_entropy(torch.randn(2, 5, 8), TARGET, MASK)


def test_target_and_mask_exchanged() -> None:
    with pytest.raises(TypeError, match=r"got bool tensor .* it holds class ids"):
        ops.masked_linear_cross_entropy(HIDDEN[:, 1:], WEIGHT, MASK, TARGET)


def test_only_a_negative_target_may_mean_none() -> None:
    for value, hint in ((-1, True), (5, False)):
        with pytest.raises(IndexError) as raised:
            ops.masked_linear_cross_entropy(HIDDEN[:, 1:], WEIGHT, torch.full_like(TARGET, value))
        assert (f"pass ignore_index={value}" in str(raised.value)) == hint


def test_meta_tensors() -> None:
    hidden, weight, target = (t.to("meta") for t in (HIDDEN[:, 1:], WEIGHT, TARGET))
    loss = ops.masked_linear_cross_entropy(hidden, weight, target)
    assert loss.is_meta
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert ops.masked_linear_cross_entropy(hidden, weight, target, reduction="none").shape == (2, 8)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_float64_is_refused_by_a_named_gpu_s(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Its kernels accumulate in float32; chosen by device, the reference takes float64."""
    x, w, target = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64)
    narrow = ops.masked_linear_cross_entropy(x, w, target, backend="reference").double()
    monkeypatch.setattr(_backend, "resolve", lambda *_: backend)
    mlce = ops.masked_linear_cross_entropy
    for call, name in (
        (lambda **kw: ops.masked_cross_entropy(x.double(), target, **kw), "logits"),
        (lambda **kw: mlce(x.double(), w, target, **kw), "input"),
        (lambda **kw: mlce(x, w.double(), target, **kw), "linear_weight"),
        (lambda **kw: mlce(x, w, target, linear_bias=w[:, 0].double(), **kw), "linear_bias"),
    ):
        message = rf'{name} must be float32, .* for backend "{backend}", got float64; .*"reference"'
        with pytest.raises(TypeError, match=message):
            call(backend=backend)
        with _backend.use_backend(backend), pytest.raises(TypeError, match=message):
            call()
        if name != "logits":
            torch.testing.assert_close(call(), narrow)
