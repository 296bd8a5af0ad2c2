"""The linear loss of more classes than a kernel keeps: chunks of tokens, tiles of classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import ops
from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_linear_cross_entropy import autograd, problem
from tests.ops.harness import running
from tests.ops.linear_loss import (
    MODES,
    check_all,
    copies,
    gradients_made_in,
    make,
    truth_of,
)
from tests.ops.loss_checks import array, assert_errors_no_larger

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
mlce = ops.masked_linear_cross_entropy


@pytest.fixture
def small_chunks(monkeypatch):
    """Three chunks of what else is one."""
    from clustermim_fast.ops.masked_linear_cross_entropy import triton_chunks, triton_tiles

    monkeypatch.setattr(triton_tiles, "CHUNK_BYTES", 128 * 1200)
    monkeypatch.setattr(triton_chunks, "CHUNK_BYTES", 1)


@pytest.mark.parametrize("hint", [None, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_chunks_and_tiles(dtype, mode, hint, small_chunks):
    d = make(dtype, 3, 130, 100, 40, 300, 1)
    d["b"] = d["b"].detach().float().requires_grad_()  # so that db is not rounded
    with running("triton"), gradients_made_in(mode):
        loss, metrics = mlce(
            d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], label_smoothing=0.1,
            num_prefix_tokens=1, masked_per_sample=hint, return_metrics=True, backend="triton",
        )  # fmt: skip
        loss.backward()
    options = {"softmax_unit": 0.0} if mode == "recompute" else {}
    check_all(d, loss, truth_of(d, 1, "triton", label_smoothing=0.1, **options), 1)
    z = d["x"].float()[:, 1:] @ d["w"].float().T + d["b"].float()
    best = z.argmax(-1)[d["mask"]]
    assert torch.equal(metrics.histogram, torch.bincount(best, minlength=300))
    assert metrics.accuracy == (best == d["target"][d["mask"]]).float().mean()


def test_float16_s_gradients_with_the_forward(small_chunks, monkeypatch):
    """None of it goes through E, if the op is asked for them."""
    monkeypatch.setattr(autograd, "needed_in_forward", lambda *_: (True, True, True))
    d = make(torch.float16, 3, 130, 100, 40, 300, 1)
    d["b"] = d["b"].detach().float().requires_grad_()
    with running("triton"):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"],
                    num_prefix_tokens=1, label_smoothing=0.1, backend="triton")  # fmt: skip
        loss.backward()
    check_all(d, loss, truth_of(d, 1, "triton", label_smoothing=0.1), 1)


@pytest.mark.parametrize("scale", [0.1, 2.0, 12.0])  # of the logits
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("dtype", "mode"), [*((torch.bfloat16, mode) for mode in MODES), (torch.float16, "recompute")]
)
def test_no_farther_from_float64_than_torch(dtype, mode, autocast, label_smoothing, scale):
    """Than F.linear and F.cross_entropy in that dtype, or under its autocast.

    Tokens have weights: the target's gradient is -(1 - smoothing) + p with a small p, and but for
    weights all tokens would have much the same rounding error, large or small as it happens. The
    weights are of 8 bits and summed, not averaged, so that torch's own gradient of a row's loss is
    exact.
    """
    rows, dim, classes, grad_output = 120, 64, 300, 1024.0
    values = {"x": torch.randn(1, rows, dim), "w": torch.randn(classes, dim) * scale / dim**0.5,
              "b": torch.randn(classes) * scale}  # fmt: skip
    leaf = torch.float32 if autocast else dtype
    d = {k: v.to(dtype).to(leaf).requires_grad_() for k, v in values.items()}
    d |= {"target": torch.randint(0, classes, (1, rows)), "mask": None}
    options = {"label_smoothing": label_smoothing, "reduction": "sum",
               "token_weight": torch.randint(128, 256, (1, rows)) / 128}  # fmt: skip
    truth = truth_of(d, 0, "reference", grad_output=grad_output, **options)
    theirs = copies(d)
    with torch.autocast("cpu", dtype, enabled=autocast):
        logits = F.linear(theirs["x"][0], theirs["w"], theirs["b"])
        logits = logits.float() if autocast else logits
        each = F.cross_entropy(
            logits, d["target"][0], label_smoothing=label_smoothing, reduction="none"
        )
    torchs = (each.float() * options["token_weight"][0]).sum()
    torchs.backward(torch.tensor(grad_output))
    with running("triton"), gradients_made_in(mode), torch.autocast("cpu", dtype, enabled=autocast):
        ours = mlce(d["x"], d["w"], d["target"], linear_bias=d["b"], backend="triton", **options)
        ours.backward(torch.tensor(grad_output))
    # p goes through float16 beside bfloat16's own rounding of it: 2^-11 beside 2^-8.
    again = 2.0**-3 if (dtype, mode) == (torch.bfloat16, "forward") else 0.0
    for name, a, b, want, bound in (
        ("loss", ours, torchs, truth.loss, truth.loss_bound),
        ("dX", d["x"].grad, theirs["x"].grad, truth.dx.reshape(d["x"].shape), truth.dx_bound),
        ("dW", d["w"].grad, theirs["w"].grad, truth.dw, truth.dw_bound),
        ("db", d["b"].grad, theirs["b"].grad, truth.db, truth.db_bound),
    ):
        assert_errors_no_larger(name, array(a), array(b), want, bound, again)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classes", [17, 130, 256, 257])
def test_numbers_of_classes_around_a_tile(classes, reduction, monkeypatch):
    """Also those that another kernel takes on a GPU that keeps them."""
    monkeypatch.setattr(problem, "logits_stay", lambda *_: False)
    triton_problem = pytest.importorskip(
        "clustermim_fast.ops.masked_linear_cross_entropy.triton_problem"
    )
    monkeypatch.setattr(triton_problem, "logits_stay", lambda *_: False)
    d = make(torch.bfloat16, classes=classes)
    weight = torch.rand(d["target"].shape)
    options = {"label_smoothing": 0.3, "token_weight": weight, "reduction": reduction}
    with running("triton"):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"],
                    backend="triton", **options)  # fmt: skip
        grad = torch.rand(loss.shape) if reduction == "none" else torch.tensor(1.0)
        loss.backward(grad)
    check_all(d, loss, truth_of(d, 0, "triton", grad_output=grad.numpy(), **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("grad_output", [0.25, 3.7, 0.0])
def test_a_late_grad_output(dtype, grad_output, monkeypatch):
    d = make(dtype, classes=300, prefix=1)
    monkeypatch.setattr(autograd, "_graph_is_kept", lambda: False)
    with running("triton"):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], label_smoothing=0.1,
                    num_prefix_tokens=1, backend="triton")  # fmt: skip
        loss.backward(torch.tensor(grad_output))
    d["b"] = None
    check_all(d, loss, truth_of(d, 1, "triton", label_smoothing=0.1, grad_output=grad_output), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", [0.0, 12.125])
def test_the_target_s_gradient_is_of_float32(dtype, other):
    """Where p is nearly 1, and where float16 would round it by 2^-12.4: exp(-0.125)."""
    d = make(dtype, classes=300)
    d["b"] = torch.zeros(300, requires_grad=True)  # so that db is not rounded
    with torch.no_grad():
        d["w"].zero_()
        d["b"][7] = 12.0
        d["b"][8] = other
    d["target"].fill_(7)
    with running("triton"):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], backend="triton")
        loss.backward()
    check_all(d, loss, truth_of(d, 0, "triton"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_mask_with_more_than_was_said(dtype, reduction):
    """That sample's losses are NaN, and those beyond the number said: none is as it lay there."""
    d = make(dtype, classes=300)
    d["mask"][1] = True
    with running("triton"):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], masked_per_sample=7,
                    reduction=reduction, backend="triton")  # fmt: skip
        loss.sum().backward()
    assert torch.isnan(d["w"].grad).all()
    assert not d["x"].grad[~d["mask"]].any()
    assert torch.isnan(d["x"].grad[1]).all()
    late = d["mask"][2].nonzero()[-3:, 0]
    assert torch.isnan(d["x"].grad[2, late]).all()
    if reduction == "none":
        assert torch.isnan(loss[2, late]).all()
        assert torch.isnan(loss[1]).all()
        assert torch.isfinite(loss[0]).all()
        assert not loss[~d["mask"]].any()
    else:
        assert torch.isnan(loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hint", [None, 38])
def test_products_stop_at_what_counts(hint, dtype):
    """Three of the counted tokens' tiles: logits, dX, dW; float16's backward pass a fourth."""
    from tests.gpu import strict

    samples, tokens, masked, dim, classes = 8, 50, 38, 64, 300
    d = make(dtype, samples, tokens, masked, dim, classes)
    with running("triton"), strict.checked(races=True) as seen:
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], masked_per_sample=hint,
                    backend="triton")  # fmt: skip
        loss.backward()
    tile = 128
    counted = -(-samples * masked // tile) * tile
    assert counted < samples * tokens
    whole = -(-classes // tile) * tile
    logits = 2 * counted * whole * dim * (2 if dtype == torch.float16 else 1)
    dx = 2 * counted * -(-classes // 64) * 64 * dim
    spans = -(-samples * masked // 64) * 64
    dw = 2 * spans * whole * dim
    assert seen.dot_flops == logits + dx + dw
