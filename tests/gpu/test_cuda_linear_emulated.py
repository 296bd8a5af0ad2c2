"""The linear loss in CUDA C++, emulated on the CPU behind the op, against the float64 formula.

All the op's own tests run so in `make check-cuda`; here are calls of every kind in the ordinary
Triton run.
"""

from __future__ import annotations

import struct
import subprocess

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _self_checks
from clustermim_fast.ops.masked_linear_cross_entropy import autograd, cuda_few
from clustermim_fast.ops.masked_linear_cross_entropy.triton_problem import make_problem
from tests.gpu import emulated
from tests.ops.harness import running
from tests.ops.linear_loss import check_all, gradients_made_in, make, truth_of

mlce = ops.masked_linear_cross_entropy
BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture
def launched(monkeypatch):
    """The launches that a test makes, in turn: kind, blocks and arguments by name."""
    seen = []
    launch = emulated.launch

    def note(kind, blocks, arguments, *given):
        pointers = struct.unpack_from(f"<{len(cuda_few.POINTERS)}Q", arguments)
        seen.append((kind, blocks, dict(zip(cuda_few.POINTERS, pointers, strict=True))))
        launch(kind, blocks, arguments, *given)

    monkeypatch.setattr(emulated, "launch", note)
    return seen


def _check(d, prefix=0, grad_output=1.0, mode="forward", hint=None, metrics=False, **options):
    """The op on CUDA C++ against the truth; returns what the op returned."""
    with running("cuda") as backend, gradients_made_in(mode):
        result = mlce(
            d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], num_prefix_tokens=prefix,
            masked_per_sample=hint, return_metrics=metrics, backend=backend, **options,
        )  # fmt: skip
        loss = result[0] if metrics else result
        if loss.requires_grad:
            loss.backward(torch.as_tensor(grad_output).expand(loss.shape))
    truth = truth_of(d, prefix, backend, grad_output=grad_output, **options)
    check_all(d, loss, truth, prefix)
    return result, truth


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(
    "dim, classes",
    [(8, 1), (64, 7), (128, 50), (192, 100), (256, 128), (264, 100), (512, 100), (512, 128)],
)
def test_sizes(launched, dtype, dim, classes):
    d = make(dtype, batch=4, tokens=60, masked=45, dim=dim, classes=classes, prefix=1)
    _check(d, 1, label_smoothing=0.1)
    kind = launched[-1][0]
    assert (kind.depth, kind.cluster) == (128 if dim <= 128 else 256, 1 if dim <= 256 else 2)
    # float16 makes its gradients in the backward; a bfloat16 dX could be made again.
    kinds = [(k.input, k.weight) for k, *_ in launched]
    assert kinds == [(True, True), (True, False)] if dtype == BF16 else [(False,) * 2, (True,) * 2]


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("dim", [64, 512])
def test_every_block_takes_several_tiles(launched, samples, dim):
    """And the last of them is a part of one; or all but one block have none."""
    masked = 187 if samples > 1 else 9
    d = make(BF16, batch=samples, tokens=200, masked=masked, dim=dim, classes=40)
    _check(d, mode="recompute")
    assert [blocks for _, blocks, _ in launched] == [4, 4]


OPTIONS = {
    "sum": dict(reduction="sum"),
    "a loss for each": dict(reduction="none"),
    "token weights": dict(token_weight=True, label_smoothing=0.3),
    "token weights, each": dict(token_weight=True, reduction="none", label_smoothing=0.3),
    "all smoothed": dict(label_smoothing=1.0),
    "ignored": dict(ignore_index=3, metrics=True),
    "a grad_output": dict(grad_output=3.7, label_smoothing=0.1),
    "a power of two": dict(grad_output=-0.25),
    "recomputed": dict(grad_output=3.7, label_smoothing=0.1, mode="recompute"),
    "metrics": dict(metrics=True, hint=30, label_smoothing=0.1),
}


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(dtype, name):
    d = make(dtype, batch=3, tokens=40, masked=30, dim=64, classes=20, prefix=2)
    options = dict(OPTIONS[name])
    if options.get("token_weight"):
        options["token_weight"] = torch.rand(d["target"].shape)
    result, truth = _check(d, 2, **options)
    if options.get("metrics"):
        metrics = result[1]
        assert int(metrics.num_counted) == truth.counted.sum()
        assert (metrics.histogram.numpy() == truth.histogram).all()


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_a_grad_output_for_each_row(dtype):
    d = make(dtype, tokens=40, masked=30, dim=64, classes=20)
    grad = torch.randn(d["target"].shape)
    with running("cuda") as backend:
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"],
                    label_smoothing=0.1, reduction="none", backend=backend)  # fmt: skip
        loss.backward(grad)
    truth = truth_of(d, 0, backend, reduction="none", grad_output=grad.numpy(), label_smoothing=0.1)
    check_all(d, loss, truth)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("frozen", ["x", "w", "b", "xw", "xb", "wb", "xwb", "no bias"])
def test_what_is_not_wanted_is_not_made(launched, frozen, smoothing):
    d = make(BF16, tokens=40, masked=30, dim=64, classes=20)
    if frozen == "no bias":
        d["b"] = None
    else:
        for name in frozen:
            d[name].requires_grad_(False)
    _check(d, label_smoothing=smoothing, mode="recompute")
    kind, _, arguments = launched[-1]
    wanted = {name: d[name] is not None and d[name].requires_grad for name in "xwb"}
    assert (kind.input, kind.weight) == (wanted["x"], wanted["w"])
    made = {"x": "dx", "w": "parts", "b": "db"}
    assert {name: bool(arguments[made[name]]) for name in "xwb"} == wanted
    assert bool(arguments["direction"]) == (wanted["x"] and smoothing > 0)
    assert not arguments["again"]


def test_autocast_s_rounding_is_what_counts():
    d = make(torch.float32, tokens=20, dim=16, classes=9)
    with running("cuda") as backend, torch.autocast("cpu", torch.bfloat16):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], backend=backend)
    with running("cuda"):
        loss.backward()
    rounded = dict(d, x=d["x"].detach().bfloat16(), w=d["w"].detach().bfloat16())
    check_all(d, loss, truth_of(rounded, 0, backend), dx_dtype=BF16)


def _shifted(tensor):
    """The same values, at an address that 16 bytes do not divide."""
    wide = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    wide[1:] = tensor.detach().flatten()
    return wide[1:].view(tensor.shape).requires_grad_()


def _in_wider_rows(tensor, by):
    wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + by, dtype=tensor.dtype)
    wide[..., :-by] = tensor.detach()
    return wide[..., :-by].requires_grad_()


@pytest.mark.parametrize("how", ["address", "rows", "rows that need no copy", "target"])
def test_where_rows_lie(launched, how):
    d = make(BF16, tokens=20, dim=16, classes=9, prefix=1)
    for name in "xw":
        if how == "address":
            d[name] = _shifted(d[name])
        elif how == "rows":
            d[name] = _in_wider_rows(d[name], 1)
        elif how == "rows that need no copy":
            d[name] = _in_wider_rows(d[name], 8)
    if how == "target":
        d["target"] = d["target"].int()
    given = {"x": d["x"].data_ptr(), "weight": d["w"].data_ptr()}
    _check(d, 1, mode="recompute")
    copied = how in ("address", "rows")
    for _, _, arguments in launched:
        for name, address in given.items():
            assert arguments[name] % 16 == 0
            assert (arguments[name] != address) == copied


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mask", ["none of them", "all of them"])
def test_masks(reduction, mask):
    d = make(BF16, tokens=40, dim=64, classes=20, prefix=1)
    d["mask"] = torch.full_like(d["mask"], mask == "all of them")
    _check(d, 1, reduction=reduction, label_smoothing=0.1)
    if mask == "none of them":
        assert not any(d[name].grad.any() for name in "xwb")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(0, 10), (3, 0)])
def test_no_tokens(reduction, shape):
    d = make(BF16, *shape, dim=64, classes=20, prefix=2)
    _check(d, 2, reduction=reduction)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_a_mask_that_is_not_what_was_said(dtype):
    """The tokens of that sample have no loss, and what they are part of is NaN."""
    d = make(dtype, tokens=20, masked=7, dim=64, classes=20, prefix=1)
    d["mask"][1, d["mask"][1].logical_not().nonzero()[0]] = True
    with running("cuda") as backend:
        each = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], reduction="none",
                    num_prefix_tokens=1, masked_per_sample=7, backend=backend)  # fmt: skip
        each.sum().backward()
    wrong = d["mask"].clone()
    wrong[[0, 2]] = False
    assert torch.equal(each.isnan(), wrong)
    of_input = d["x"].grad[:, 1:].isnan()
    assert torch.equal(of_input.all(2), wrong)
    assert torch.equal(of_input.any(2), wrong)
    assert d["w"].grad.isnan().all()
    assert d["b"].grad.isnan().all()


@pytest.mark.parametrize("grad_output", [1.0, 0.25, -8.0, 3.7, 0.0])
def test_a_late_grad_output_is_never_asked_for(grad_output, monkeypatch):
    """Powers of two scale what the forward made; another one has dX made again, exactly once."""
    d = make(BF16, tokens=40, masked=30, dim=64, classes=20, prefix=1)
    monkeypatch.setattr(autograd, "_graph_is_kept", lambda: False)
    monkeypatch.setattr(torch.Tensor, "__float__", None)
    with running("cuda") as backend:
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"],
                    label_smoothing=0.1, num_prefix_tokens=1, backend=backend)  # fmt: skip
        loss.backward(torch.tensor(grad_output))
    monkeypatch.undo()
    truth = truth_of(d, 1, backend, label_smoothing=0.1, grad_output=grad_output)
    check_all(d, loss, truth, 1)


def test_the_same_bits_twice():
    d = make(FP16, tokens=200, masked=190, dim=264, classes=100)
    found = []
    for _ in range(2):
        with running("cuda") as backend:
            loss = mlce(d["x"], d["w"], d["target"], linear_bias=d["b"], label_smoothing=0.1,
                        backend=backend)  # fmt: skip
            found.append((loss, *torch.autograd.grad(loss, [d["x"], d["w"], d["b"]])))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_self_check_passes_and_can_fail(monkeypatch):
    check = _self_checks.CHECKS["masked_linear_cross_entropy"]
    module = _self_checks._masked_linear_cross_entropy
    right = module.masked_linear_cross_entropy
    with running("cuda"):
        check(torch.device("cpu"), "cuda")
        monkeypatch.setattr(
            module, "masked_linear_cross_entropy",
            lambda *a, backend, **kw: right(*a, backend=backend, **kw)
            * (1.02 if backend == "cuda" else 1.0),
        )  # fmt: skip
        with pytest.raises(AssertionError, match="differs by"):
            check(torch.device("cpu"), "cuda")


REFUSED = {
    "float32": (dict(dtype=torch.float32), "input must be float16 or bfloat16"),
    "many classes": (dict(classes=129), r"linear_weight must be \[K, d\] with K <= 128"),
    "deep": (dict(dim=520), "input must be .* with d a multiple of 8 up to 512"),
    "ragged": (dict(dim=20), "with d a multiple of 8"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cuda_does_not_take_is_refused_by_name(how):
    sizes, message = REFUSED[how]
    d = make(**{"dtype": BF16, **sizes})
    with (
        emulated.running(),
        pytest.raises(ValueError, match=rf'{message}.* for backend "cuda", got .*"triton"'),
    ):
        mlce(d["x"], d["w"], d["target"], d["mask"], backend="cuda")
    forward = torch.ops.clustermim.masked_linear_cross_entropy.default
    with pytest.raises(ValueError, match=message):  # and not read by who calls the op itself
        forward(d["x"], d["w"], None, d["target"], None, None, "mean", -100, 0.0, 0, -1, False,
                False, False, False, "cuda")  # fmt: skip


def test_dtypes_that_differ_are_refused_by_name():
    d = make(BF16)
    with (
        emulated.running(),
        pytest.raises(ValueError, match=r"linear_weight must be of the input's dtype.*bfloat16"),
    ):
        mlce(d["x"], d["w"].half(), d["target"], backend="cuda")
    with (
        emulated.running(),
        pytest.raises(TypeError, match=r'linear_bias must be .* for backend "cuda".*"reference"'),
    ):
        mlce(d["x"], d["w"], d["target"], linear_bias=d["b"].double(), backend="cuda")


PROGRAM = """
#include <cstdio>
#include <cstring>
#include "masked_cross_entropy/hopper_linear_arguments.h"
int main() {{
  clustermim::hopper::LinearArguments a;
  unsigned char bytes[sizeof a];
  if (std::fread(bytes, 1, sizeof a, stdin) != sizeof a) return 1;
  std::memcpy(&a, bytes, sizeof a);
  {}
}}
"""


def test_arguments_are_those_of_the_source(tmp_path):
    """Packed here, read by name there."""
    x = torch.zeros(3, 12, 32, dtype=BF16)[:, :, :16]
    w = torch.zeros(9, 24, dtype=BF16)[:, :16]
    target = torch.zeros(3, 10, dtype=torch.int32)
    rows, count = torch.arange(30), torch.tensor(30)
    problem = make_problem(x, w, None, target, None, (rows, count, count.double()), "mean", 0.25,
                           2, -1)  # fmt: skip
    tensors = {name: torch.zeros(at + 1) for at, name in enumerate(cuda_few.POINTERS)}
    tensors |= {"x": x, "weight": w, "dx": torch.zeros(3, 12, 16, dtype=BF16), "db": None}
    packed = cuda_few.pack_arguments(problem, tensors, writes_losses=True)
    expected = {n: 0 if t is None else t.data_ptr() for n, t in tensors.items()} | {
        "x_sample": 384, "x_row": 32, "weight_row": 24, "dx_sample": 192, "dx_row": 16,
        "num_tokens": 30, "num_classes": 9, "dim": 16, "per_sample": 10, "prefix": 2, "samples": 3,
        "target_bytes": 4, "writes_losses": 1, "smoothing": 0.25,
    }  # fmt: skip
    lines = [
        f'std::printf("{name} %{"a" if isinstance(value, float) else "lld"}\\n", '
        f"{'a.' + name if isinstance(value, float) else f'(long long)a.{name}'});"
        for name, value in expected.items()
    ]
    source = tmp_path / "arguments.cpp"
    source.write_text(PROGRAM.format("\n  ".join(lines)))
    command = ["g++", "-std=c++20", f"-I{emulated.CORE}", source, "-o", tmp_path / "arguments"]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "arguments"], input=packed, capture_output=True, check=True)
    read = dict(line.split() for line in done.stdout.decode().splitlines())
    found = {
        name: float.fromhex(read[name]) if isinstance(value, float) else int(read[name])
        for name, value in expected.items()
    }
    assert found == expected
