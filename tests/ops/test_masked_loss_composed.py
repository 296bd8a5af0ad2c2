"""The losses with what comes before them: token ids, masks, empty and extreme batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clustermim_fast import nn as cnn
from clustermim_fast import ops
from clustermim_fast.ops.masked_cross_entropy import rows as row_lists
from tests.ops.linear_loss import check_all, make, truth_of
from tests.ops.loss_checks import BACKENDS, DTYPES, tokens_mask

mce, mlce = ops.masked_cross_entropy, ops.masked_linear_cross_entropy


def test_the_row_list_of_torch_is_that_of_the_core() -> None:
    from clustermim_fast.ops.masked_cross_entropy.cpu import row_list

    for _ in range(20):
        target = torch.randint(-1, 3, (5, 7))
        mask = torch.rand(5, 7) < 0.5
        for given in (mask, None):
            rows, count = row_lists.row_list(target, given, -1)
            ours, n = row_list("test", target.contiguous(), given, -1, 3)
            assert torch.equal(rows, ours)
            assert int(count) == n
            assert torch.equal(rows.sort().values, torch.arange(35))


def test_ids_of_a_batch_with_nan_patches_through_the_loss() -> None:
    """nearest_centroid gives -1 to a patch with NaN; ignore_index=-1 leaves it out."""
    patches = torch.randn(2, 10, 12)
    patches[0, 3, 5] = torch.nan
    centroids = torch.randn(6, 12)
    ids = ops.nearest_centroid(patches, centroids)
    assert int(ids[0, 3]) == -1
    head = cnn.MaskedLinearCrossEntropyLoss(8, 6, ignore_index=-1, return_metrics=True)
    hidden = torch.randn(2, 10, 8, requires_grad=True)
    loss, metrics = head(hidden, ids, tokens_mask(2, 10, 10))
    loss.backward()
    assert int(metrics.num_counted) == 19
    assert not hidden.grad[0, 3].any()
    assert torch.isfinite(loss)


def _everything(d: dict[str, Any]) -> None:
    d["mask"][:] = True


def _nothing(d: dict[str, Any]) -> None:
    d["mask"][:] = False


def _one_token(d: dict[str, Any]) -> None:
    d["mask"][:] = False
    d["mask"][1, 4] = True


def _all_ignored(d: dict[str, Any]) -> None:
    d["target"][:] = -1


def _ids_of_nan_patches(d: dict[str, Any]) -> None:
    d["target"][0, 2:7] = d["target"][2, 0] = -1


def _sliced_targets(d: dict[str, Any]) -> None:
    wide = torch.zeros(3, 23, dtype=torch.int32)
    wide[:, 3:23:2] = d["target"]
    d["target"] = wide[:, 3:23:2]


def _large(d: dict[str, Any]) -> None:
    with torch.no_grad():
        d["b"].copy_(torch.randn(d["b"].shape).sign() * 1e4)


EDGES = [_everything, _nothing, _one_token, _all_ignored, _ids_of_nan_patches, _sliced_targets]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edge", [*EDGES, _large], ids=lambda edge: edge.__name__[1:])
@pytest.mark.parametrize("classes", [1, 13])
def test_edge_of_a_batch(backend: str, dtype: torch.dtype, edge: Any, classes: int) -> None:
    d = make(dtype, classes=classes, prefix=1)
    edge(d)
    options = {"ignore_index": -1, "label_smoothing": 0.1}
    loss, metrics = mlce(
        d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], num_prefix_tokens=1,
        return_metrics=True, backend=backend, **options,
    )  # fmt: skip
    loss.backward()
    truth = truth_of(d, 1, backend, **options)
    assert int(metrics.num_counted) == truth.counted.sum()
    check_all(d, loss, truth, 1)
    assert np.isnan(float(loss.detach())) == (not truth.counted.any())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.__name__[1:])
def test_edge_of_a_batch_of_logits(backend: str, dtype: torch.dtype, edge: Any) -> None:
    """The loss of given logits is the other one's, with the identity as the weight."""
    d = make(dtype, classes=6, dim=6)
    edge(d)
    options = {"ignore_index": -1, "label_smoothing": 0.1, "backend": backend}
    z = d["x"].detach().clone().requires_grad_()
    loss = mce(z, d["target"], d["mask"], **options)
    loss.backward()
    d["w"] = torch.eye(6, dtype=dtype)
    d["b"] = None
    truth = truth_of({**d, "x": z}, **{k: v for k, v in options.items() if k != "backend"})
    check_all({**d, "x": z}, loss, truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [13, -2, 2**40, -(2**40)])
def test_target_out_of_range_is_a_clear_error(backend: str, value: int) -> None:
    d = make(torch.bfloat16)
    d["mask"][0, 3] = True
    d["target"][0, 3] = value
    for call in (
        lambda: mlce(d["x"], d["w"], d["target"], d["mask"], ignore_index=-1, backend=backend),
        lambda: mce(
            torch.zeros(3, 10, 13), d["target"], d["mask"], ignore_index=-1, backend=backend
        ),
    ):
        with pytest.raises(IndexError, match=rf"got {value} at position \(0, 3\)"):
            call()
