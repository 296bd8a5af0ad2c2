"""The compiled kernels of the losses hold what they should, on every target."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops.masked_linear_cross_entropy import autograd
from tests.gpu.targets import ARCHS, TENSOR_CORES, compiled_only

pytestmark = compiled_only
TOKENS, DIM = 196, 512
# Kernels with matrix products of their own; the others move rows.
PRODUCTS = ("linear_rows", "weight_parts", "logit_tiles", "logit_gradients", "input_gradient",
            "weight_gradient")  # fmt: skip
_KEPT: list[dict] = []


def _fresh():
    """Kernels compiled by an earlier test would not be seen again."""
    from clustermim_fast.ops.masked_cross_entropy import triton_compact, triton_rows
    from clustermim_fast.ops.masked_linear_cross_entropy import (
        triton_chunks,
        triton_fused,
        triton_products,
        triton_rest,
        triton_softmax,
    )

    for module in (
        triton_compact, triton_rows, triton_chunks, triton_fused, triton_products, triton_rest,
        triton_softmax,
    ):  # fmt: skip
        for kernel in vars(module).values():
            if hasattr(kernel, "device_caches"):
                _KEPT.append(dict(kernel.device_caches))  # unloading them would need a GPU
                kernel.device_caches.clear()


def _linear_rows(arch, dtype, classes, dim=DIM, **options):
    """Rows of the kernels that a loss and its backward launch."""
    from tests.gpu import static

    _fresh()
    x = torch.zeros(8, 1 + TOKENS, dim, dtype=dtype).requires_grad_()
    w = torch.zeros(classes, dim, dtype=dtype).requires_grad_()
    b = torch.zeros(classes).requires_grad_()
    target = torch.zeros(8, TOKENS, dtype=torch.int64)
    with static.offline(arch) as rows:
        loss = ops.masked_linear_cross_entropy(
            x, w, target, target == 0, linear_bias=b, num_prefix_tokens=1, backend="triton",
            **options,
        )  # fmt: skip
        loss = loss[0] if options.get("return_metrics") else loss
        loss.sum().backward()
    print(static.table(rows))
    return rows


def _check(rows, arch, kernels, ragged=False):
    assert set(kernels) <= {row.kernel for row in rows}
    for row in rows:
        assert row.clean, row.kernel
        if row.kernel in PRODUCTS:
            # wgmma and tcgen05 multiply 64 rows at least, and dW has WIDTH of them.
            narrow = row.kernel == "weight_parts" and row.constants["WIDTH"] < 64
            cores = "HMMA" if narrow else TENSOR_CORES[arch]
            assert row.counts[cores] > 0
            loads = [loop for loop in row.loops if loop[cores] > 0]
            assert loads
            assert ragged or all(loop["G128"] > 0 for loop in loads)


FEW = ("_count_spans", "_place", "_finish", "linear_rows", "weight_parts", "add_parts")
MANY = ("_count_spans", "_place", "_finish", "logit_tiles", "combine_tiles", "grad_tiles",
        "weight_gradient", "input_gradient", "fill_rest", "add_parts")  # fmt: skip
LATE = tuple("logit_gradients" if name == "grad_tiles" else name for name in MANY)
WIDE = ("_count_spans", "_place", "_finish", "gather_rows", "loss_rows", "grad_rows",
        "scatter_rows", "fill_rest", "add_parts")  # fmt: skip


def test_the_shipped_kernels_of_a_hundred_classes():
    _check(_linear_rows(90, torch.bfloat16, 100, label_smoothing=0.1), 90, FEW)


def test_the_shipped_kernels_of_a_thousand_classes():
    _check(_linear_rows(90, torch.bfloat16, 1000, label_smoothing=0.1), 90, MANY)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [16, 32, 50, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_classes(arch, classes, dtype):
    _check(_linear_rows(arch, dtype, classes, label_smoothing=0.1), arch, FEW)


@pytest.mark.slow
def test_what_hopper_fits():
    _check(_linear_rows(90, torch.bfloat16, 256, label_smoothing=0.1), 90, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [32, 50, 100])
@pytest.mark.parametrize("dim", [48, 192, 384, 768, 1000])
def test_every_width(arch, classes, dim):
    rows = _linear_rows(arch, torch.bfloat16, classes, dim, label_smoothing=0.1)
    _check(rows, arch, FEW, ragged=dim % 16 != 0)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [100, 256])
def test_gradients_made_again(arch, classes, monkeypatch):
    """A float16 dX, and a bfloat16 one whose grad_output the device keeps to itself."""
    monkeypatch.setattr(autograd, "_on_device", lambda _: True)
    for dtype in (torch.float16, torch.bfloat16):
        rows = _linear_rows(arch, dtype, classes, label_smoothing=0.1)
        many = LATE if dtype == torch.float16 else (*MANY, "logit_gradients")
        _check(rows, arch, ("linear_rows",) if classes <= 128 or arch == 90 else many)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [64, 100])
def test_every_option(arch, classes):
    weight = torch.ones(8, TOKENS)
    rows = _linear_rows(
        arch, torch.bfloat16, classes, label_smoothing=0.1, token_weight=weight, reduction="none",
        masked_per_sample=TOKENS,
    )  # fmt: skip
    _check(rows, arch, ("linear_rows", "weight_parts"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [257, 1000, 8192])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_classes(arch, classes, dtype):
    kernels = LATE if dtype == torch.float16 else MANY
    _check(_linear_rows(arch, dtype, classes, label_smoothing=0.1), arch, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dim", [48, 384, 768, 1000])
def test_many_classes_of_every_width(arch, dim, monkeypatch):
    monkeypatch.setattr(autograd, "_on_device", lambda _: True)
    rows = _linear_rows(arch, torch.bfloat16, 1000, dim)
    if dim % 16:
        assert all(row.clean for row in rows)
    else:
        _check(rows, arch, (*MANY, "logit_gradients"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [1000, 8192])
def test_every_option_of_many_classes(arch, classes, monkeypatch):
    from clustermim_fast.ops.masked_cross_entropy import triton_compact

    # It looks tokens up in a list that nothing has filled.
    monkeypatch.setattr(triton_compact, "row_scales", lambda *_: torch.zeros(8 * TOKENS))
    rows = _linear_rows(
        arch, torch.bfloat16, classes, label_smoothing=0.1, token_weight=torch.ones(8, TOKENS),
        reduction="none", masked_per_sample=TOKENS, return_metrics=True,
    )  # fmt: skip
    _check(rows, arch, ("logit_tiles", "combine_tiles", "logit_gradients", "weight_gradient"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [100, 1000, 8192])
def test_library_products(arch, classes):
    _check(_linear_rows(arch, torch.float32, classes, label_smoothing=0.1), arch, WIDE)


def _given_logits(arch, dtype, classes):
    from tests.gpu import static

    _fresh()
    z = torch.zeros(2, 10, classes, dtype=dtype).requires_grad_()
    target = torch.zeros(2, 10, dtype=torch.int64)
    with static.offline(arch) as rows:
        ops.masked_cross_entropy(
            z, target, target == 0, label_smoothing=0.1, weight=torch.ones(classes),
            backend="triton",
        ).backward()  # fmt: skip
    print(static.table(rows))
    _check(rows, arch, ("loss_rows", "grad_rows"))
    wide = classes * dtype.itemsize % 16 == 0  # else a row starts where no 16 bytes do
    for row in rows:
        if row.kernel in ("loss_rows", "grad_rows"):
            assert (row.counts["G128"] > 0) == wide


def test_the_shipped_kernels_of_given_logits():
    _given_logits(90, torch.bfloat16, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("classes", [50, 100, 1024, 16384, 20000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_width_of_logits(arch, classes, dtype):
    _given_logits(arch, dtype, classes)
