"""Bugs that other packages shipped in losses like these, each as a test of ours: 18, 28
and 30, of work and waiting that nobody needs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops.masked_linear_cross_entropy import tiles
from tests.ops.harness import assert_same
from tests.ops.linear_loss import MODES, gradients_made_in
from tests.ops.loss_bugs import problem
from tests.ops.loss_checks import BACKENDS

mce, mlce = ops.masked_cross_entropy, ops.masked_linear_cross_entropy
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def test_bug18_host_syncs() -> None:
    """The algebra on fake CUDA tensors, which raise when their values are asked for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from clustermim_fast.ops.masked_linear_cross_entropy import reference

    try:
        with FakeTensorMode():
            torch.empty(1, device="cuda")[torch.empty(1, device="cuda").long()]
    except RuntimeError as error:  # torch 2.4 wants a real device for that
        pytest.skip(f"this torch has no fake CUDA tensors without a GPU ({str(error)[:40]})")
    with FakeTensorMode(allow_non_fake_inputs=False):
        x = torch.empty(2, 11, 8, device="cuda")
        w, b = torch.empty(5, 8, device="cuda"), torch.empty(5, device="cuda")
        t = torch.empty(2, 10, dtype=torch.int64, device="cuda")
        m, tw = (
            torch.empty(2, 10, dtype=torch.bool, device="cuda"),
            torch.empty(2, 10, device="cuda"),
        )
        for reduction in ("mean", "sum", "none"):
            loss, rows, count, _, divisor, _, histogram = reference.forward(
                x, w, b, t, m, tw, reduction, -100, 0.1, 1, 5, True
            )
            assert histogram.shape == (5,)
            grads = reference.backward(
                torch.empty_like(loss), x, w, b, t, tw, rows, count, divisor, reduction, -100, 0.1,
                1, True, True, True,
            )  # fmt: skip
            assert [g.shape for g in grads] == [x.shape, w.shape, b.shape]


# Kineto looks for a GPU when a profile starts, and warns where there is none.
quiet_profile = pytest.mark.filterwarnings("ignore::UserWarning:torch.profiler.*")


def _profile() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


@pytest.mark.parametrize("backend", BACKENDS)
@quiet_profile
def test_bug28_class_dimension_in_the_middle(backend: str) -> None:
    """[B, L, K] goes in as it is: nothing transposes it, no loss has the classes in the middle."""
    z = torch.randn(2, 9, 5, requires_grad=True)
    t = torch.randint(0, 5, (2, 9))
    with _profile() as profile:
        loss = mce(z, t, backend=backend)
        loss.backward()
    ran = {event.key for event in profile.key_averages()}
    assert f"clustermim::{mce.__name__}" in ran
    never = ("nll_loss2d", "transpose", "permute", "movedim")
    assert not [name for name in ran for word in never if word in name]
    # And a [B, K, L] tensor seen that way gives the same.
    middle = z.detach().transpose(1, 2).contiguous()
    assert_same(mce(middle.transpose(1, 2), t, backend=backend), loss.detach())


def _matrix_products(mode: str, frozen: str) -> tuple[int, int]:
    """Matrix products of one forward and one backward with ``frozen`` parts of x, w, b."""
    x, w, b, t = problem()
    for name, tensor in zip("xwb", (x, w, b), strict=True):
        tensor.requires_grad_(name not in frozen)
    counts = []
    with gradients_made_in(mode), _profile() as profile:
        loss = mlce(x, w, t, linear_bias=b, backend="cpu")
    counts.append(profile)
    with _profile() as profile:
        if loss.requires_grad:
            loss.backward()
    counts.append(profile)
    names = ("aten::mm", "aten::addmm_")
    forward, backward = (sum(e.count for e in p.key_averages() if e.key in names) for p in counts)
    return forward, backward


@quiet_profile
def test_bug30_gradients_that_nobody_asked_for() -> None:
    """Logits, dX, dW: each once in one of the two passes; logits again where they are not kept."""
    wanted = {"": 3, "x": 2, "w": 2, "xw": 1}
    for frozen, products in wanted.items():
        assert _matrix_products("forward", frozen) == (products, 0)
        assert _matrix_products("recompute", frozen) == (1, products)
    assert _matrix_products("forward", "xwb") == (1, 0)
    with torch.no_grad():
        assert _matrix_products("forward", "") == (1, 0)


@pytest.mark.parametrize("mode", MODES)
def test_bug30_gradients_that_nobody_asked_for_in_tiles(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tiles._backend.core().linear_rows_usable():
        pytest.skip("this machine has no tiles")
    given: list[dict[str, Any]] = []
    core = tiles._backend.core()

    class Spy:
        def linear_cross_entropy_rows(self, **arguments: Any) -> None:
            given.append(arguments)
            core.linear_cross_entropy_rows(**arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

    monkeypatch.setattr(tiles._backend, "core", Spy)
    for frozen in ("", "x", "w", "b", "xw", "xb", "wb", "xwb"):
        x, w, b, t = problem(dtype=torch.bfloat16)
        for name, tensor in zip("xwb", (x, w, b), strict=True):
            tensor.requires_grad_(name not in frozen)
        given.clear()
        with gradients_made_in(mode):
            loss = mlce(x, w, t, linear_bias=b)
        if loss.requires_grad:
            loss.backward()
        made = [
            "".join(n for n, key in zip("xwb", ("input", "weight", "bias"), strict=True)
                    if call["scale"] and call[f"grad_{key}"])
            for call in given
        ]  # fmt: skip
        rest = "".join(n for n in "xwb" if n not in frozen)
        assert made == ([rest] if mode == "forward" or not rest else ["", rest])
