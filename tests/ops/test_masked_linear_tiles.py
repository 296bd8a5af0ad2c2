"""The linear loss of bfloat16 operands in tiles (AMX): every size, edge values, other paths, bits.

The 2^-8 of the rounded operand is in the truth's bounds (``linear_truth``, ``operand_unit``); where
the path is not usable these problems run the path of every other dtype, and its tighter bounds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import assert_same, running, usable_paths
from tests.ops.linear_loss import MODES, check_all, copies, gradients_made_in, make, truth_of
from tests.ops.tiles_loss import check, problem, run

mlce = ops.masked_linear_cross_entropy


CLASSES = (1, 2, 7, 31, 32, 33, 50, 100, 257, 1000)


DIMS = (1, 7, 31, 32, 33, 50, 192, 768)


ROWS = (0, 1, 31, 32, 33)


@pytest.mark.parametrize("classes", CLASSES)
def test_every_number_of_classes(classes: int) -> None:
    for i, rows in enumerate(ROWS):
        for dim in DIMS[i % 2 :: 2]:
            check(problem(rows, dim, classes), label_smoothing=0.1 * (dim % 2))


@pytest.mark.parametrize("dim", DIMS)
def test_every_width(dim: int) -> None:
    for classes in (33, 100):
        d = problem(70, dim, classes)
        check(d)
        d = problem(45, dim, classes)
        d["b"] = None
        check(d, label_smoothing=0.0)


@pytest.mark.parametrize(
    ("rows", "dim", "classes"), [(1000, 50, 257), (2100, 33, 40), (40, 33, 8192)]
)
def test_large_sizes(rows: int, dim: int, classes: int) -> None:
    """Several tasks; several chunks of 64 strips of 32 rows; panels in more than one block."""
    check(problem(rows, dim, classes))


def test_each_token_of_several_tasks_has_its_own_weight() -> None:
    """All of dX's second part is the smoothing's, each token's by its own scale."""
    d = problem(300, 64, 7)
    check(d, label_smoothing=1.0, token_weight=torch.rand(d["target"].shape))


@pytest.mark.parametrize("path", ["generic", "avx2", "avx512", "amx"])
def test_paths_agree_within_their_bounds(path: str) -> None:
    with running(path):
        for rows, dim, classes in ((33, 50, 100), (70, 192, 31)):
            check(problem(rows, dim, classes))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("paths", [("amx", "avx512"), ("avx512", "amx"), ("amx", "generic")])
def test_another_path_between_forward_and_backward(mode: str, paths: tuple[str, str]) -> None:
    """One leaves the softmax statistics that the other reads, or makes again."""
    if not set(paths) <= set(usable_paths()):
        pytest.skip("this machine cannot run both paths")
    d = problem(70, 50, 100)
    with running("amx"):
        truth = truth_of(d, label_smoothing=0.1)
    with gradients_made_in(mode):
        with running(paths[0]):
            loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"],
                        label_smoothing=0.1)  # fmt: skip
        with running(paths[1]):
            loss.backward()
    check_all(d, loss, truth)


def test_thread_counts_and_runs_give_the_same_bits(threads: Any) -> None:
    """No sum is cut by threads here, unlike in torch's products."""
    if "amx" not in usable_paths():
        pytest.skip("this machine cannot run the amx path")
    for rows, dim, classes in ((1000, 100, 257), (70, 768, 1000)):
        d = problem(rows, dim, classes)
        for reduction in ("mean", "none"):
            results = []
            for count in (1, 2, 3, 5, 1, 2, 2, 2, 2, 2):
                threads(count)
                given = copies(d)
                with running("amx"):
                    loss = run(given, reduction=reduction, label_smoothing=0.1)
                results.append([loss.detach(), *(given[k].grad for k in "xwb")])
            for other in results[1:]:
                assert_same(other, results[0])


def test_weight_and_input_with_strides() -> None:
    d = problem(40, 64, 100)
    want = [run(d).detach(), *(d[k].grad for k in "xwb")]
    wide = torch.full((100, 2 * 64 + 3), torch.nan, dtype=torch.bfloat16)
    layouts = {
        "rows apart": wide[:, 1:65],
        "every other value": wide[:, 1:129:2],
        "transposed": torch.empty(64, 100, dtype=torch.bfloat16).t(),
    }
    for w in layouts.values():
        w.copy_(d["w"].detach())
        x = torch.full((45, 1, 67), torch.nan, dtype=torch.bfloat16).transpose(0, 1)[..., 2:66]
        x.copy_(d["x"].detach())
        given = {**copies(d), "x": x.requires_grad_(), "w": w.requires_grad_()}
        loss = run(given)
        assert_same([loss.detach(), *(given[k].grad for k in "xwb")], want)


def test_prefix_sliced_targets_and_weights_of_zero() -> None:
    d = make(torch.bfloat16, 3, 30, 20, 40, 70, prefix=2)
    d["target"] = torch.randint(0, 70, (3, 61))[:, 1::2]
    weight = torch.rand(3, 30) * (torch.rand(3, 30) < 0.5)
    options = {"token_weight": weight, "label_smoothing": 0.1}
    loss = mlce(
        d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], num_prefix_tokens=2, **options
    )
    loss.backward()
    check_all(d, loss, truth_of(d, 2, **options), 2)
    assert not d["x"].grad[:, 2:][weight == 0].any()


def test_nothing_counted() -> None:
    for reduction in ("mean", "sum", "none"):
        d = problem(0, 33, 50)
        loss = run(d, reduction=reduction, label_smoothing=0.1)
        assert torch.isnan(loss) if reduction == "mean" else not loss.any()
        for name in "xwb":
            assert d[name].grad.shape == d[name].shape
            assert not d[name].grad.any()


@pytest.mark.parametrize("frozen", ["x", "w", "b", "xw", "xb", "wb"])
def test_frozen_parts(frozen: str) -> None:
    d = problem(40, 33, 50)
    for name in frozen:
        d[name].requires_grad_(False)
    check(d)
    assert all(d[name].grad is None for name in frozen)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_contiguous_and_no_larger_than_they_look(mode: str) -> None:
    """Whole panels are computed; what lies behind the last class and value is no part of dW."""
    d = problem(40, 33, 50)
    with gradients_made_in(mode):
        run(d)
    for name in "xwb":
        grad = d[name].grad
        assert grad.is_contiguous()
        assert grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()
