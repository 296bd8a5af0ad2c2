"""What only GPU kernels of the losses do: NaN for a wrong target, no logits in memory."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _self_checks, _triton
from clustermim_fast.ops.masked_linear_cross_entropy import autograd
from tests.ops.harness import running
from tests.ops.linear_loss import check_all, make, truth_of

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)
mlce, mce = ops.masked_linear_cross_entropy, ops.masked_cross_entropy


@pytest.mark.parametrize("value", [13, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_target_makes_its_row_nan(value, dtype):
    d = make(dtype)
    d["mask"][1, 4] = True
    wrong = torch.zeros(3, 10, dtype=torch.bool)
    wrong[1, 4] = True
    clean = d["target"].clone()
    d["target"][1, 4] = value
    z = torch.randn(3, 10, 13).to(dtype).requires_grad_()
    with running("triton"):
        loss = mlce(
            d["x"], d["w"], d["target"], d["mask"], reduction="none", return_metrics=True,
            backend="triton",
        )  # fmt: skip
        loss[0].sum().backward()
        rows = mce(z, d["target"], d["mask"], reduction="none", backend="triton")
        rows.sum().backward()
        right = mlce(d["x"], d["w"], clean, d["mask"], reduction="none", backend="triton")
    assert torch.equal(torch.isnan(loss[0]), wrong)
    assert torch.equal(loss[0][~wrong], right[~wrong])
    assert torch.equal(torch.isnan(d["x"].grad).all(-1), wrong)
    assert torch.isnan(d["w"].grad).all()
    assert int(loss[1].histogram.sum()) == int(d["mask"].sum()) - 1
    assert torch.equal(torch.isnan(rows), wrong)
    assert torch.equal(torch.isnan(z.grad).all(-1), wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_hint_makes_that_samples_rows_nan(dtype):
    d = make(dtype)
    d["mask"][1] = False
    d["mask"][1, :3] = True
    with running("triton"):
        loss = mlce(
            d["x"], d["w"], d["target"], d["mask"], masked_per_sample=7, reduction="none",
            backend="triton",
        )  # fmt: skip
        loss.sum().backward()
    wrong = d["mask"].clone()
    wrong[[0, 2]] = False
    assert torch.equal(torch.isnan(loss), wrong)
    assert torch.equal(torch.isnan(d["x"].grad).all(-1), wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [13, 257, 20000])
def test_logits_of_any_width(dtype, classes):
    """Also wider than what is read once."""
    z = torch.randn(4, 5, classes).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (4, 5))
    mask = torch.rand(4, 5) < 0.6
    weight = torch.rand(classes)
    found = []
    with running("triton"):
        for backend in ("triton", "reference"):
            loss = mce(z, target, mask, weight=weight, label_smoothing=0.1, backend=backend)
            found.append((loss.detach(), torch.autograd.grad(loss, z)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1.6e-2, atol=1e-7)


@pytest.mark.parametrize("name", ["masked_cross_entropy", "masked_linear_cross_entropy"])
def test_the_self_check_passes_and_can_fail(name, monkeypatch):
    check = _self_checks.CHECKS[name]
    with running("triton"):
        check(torch.device("cpu"))
        module = _self_checks._masked_cross_entropy
        if name == "masked_linear_cross_entropy":
            module = _self_checks._masked_linear_cross_entropy
        right = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, backend, **kw: right(*a, backend=backend, **kw)
            * (1.02 if backend == "triton" else 1.0),
        )  # fmt: skip
        with pytest.raises(AssertionError, match="differs by"):
            check(torch.device("cpu"))


@pytest.mark.parametrize("grad_output", [1.0, 0.25, -8.0, 3.7, 0.0])
def test_a_late_grad_output_is_never_asked_for(grad_output, monkeypatch):
    """Powers of two scale what the forward made; another one has dX made again, exactly once."""
    d = make(torch.bfloat16, prefix=1, masked=7, tokens=40)
    monkeypatch.setattr(autograd, "_graph_is_kept", lambda: False)
    monkeypatch.setattr(torch.Tensor, "__float__", None)
    with running("triton"):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"],
                    label_smoothing=0.1, num_prefix_tokens=1, backend="triton")  # fmt: skip
        loss.backward(torch.tensor(grad_output))
    monkeypatch.undo()
    truth = truth_of(d, 1, "triton", label_smoothing=0.1, grad_output=grad_output)
    check_all(d, loss, truth, 1)


@pytest.mark.parametrize("backward", [False, True])
def test_few_classes_keep_their_logits_and_read_what_counts(backward):
    """Loads: the counted inputs once, and W once for each tile of them; none of the logits."""
    from clustermim_fast.ops.masked_linear_cross_entropy import triton_few
    from tests.gpu import strict

    samples, tokens, masked, dim, classes, prefix = 4, 50, 38, 64, 100, 1
    d = make(torch.bfloat16, samples, tokens, masked, dim, classes, prefix)
    x, w = (d[k].detach() for k in "xw")
    registered = torch.ops.clustermim
    options = ("mean", -100, 0.1, prefix)
    with running("triton"):
        given = registered.masked_linear_cross_entropy.default(
            x, w, None, d["target"], d["mask"], None, *options, -1, False, *[False] * 3, "triton"
        )
    counted = samples * masked
    sizes = triton_few.tile(classes, dim, x.device)
    tiles = -(-counted // sizes["ROWS"])
    with strict.checked(races=True) as seen:
        if backward:
            registered.masked_linear_cross_entropy_backward.default(
                torch.ones(()), x, w, None, d["target"], None, *given[1:5], *options, -1,
                *[True] * 3, "triton",
            )  # fmt: skip
        else:
            registered.masked_linear_cross_entropy.default(
                x, w, None, d["target"], d["mask"], None, *options, -1, False, *[False] * 3,
                "triton",
            )  # fmt: skip
    assert seen.loaded[x.data_ptr()] == counted * dim * 2 * (2 if backward else 1)
    logits = samples * tokens * classes * 4
    gradients = x.numel() * 2 + counted * sizes["KP"] * 2
    if not backward:
        assert seen.store_bytes < logits / 4
    flops = 2 * tiles * sizes["ROWS"] * sizes["KP"] * dim
    if backward:
        weight_tile = triton_few.weight_tile(classes, dim)
        columns = -(-dim // weight_tile["WIDTH"])
        rows = -(-counted // weight_tile["ROWS"]) * weight_tile["ROWS"]
        flops *= 2
        flops += 2 * rows * weight_tile["KP"] * weight_tile["WIDTH"] * columns
        parts = 4 * (classes + 1) * dim * 8
        assert gradients <= seen.store_bytes < gradients + 2 * parts
    assert seen.dot_flops == flops
