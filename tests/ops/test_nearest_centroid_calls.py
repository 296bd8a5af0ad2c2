"""nearest_centroid as it is called: layouts, splits, statistics, refusals, the registry."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import (
    assert_same,
    check_compile,
    check_opcheck,
    check_refusal,
    check_threads,
    every_path,
    running,
    usable_paths,
)
from tests.ops.truth import nearest_ids


def data(n: int = 500, d: int = 48, k: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, d), torch.randn(k, d)


# ---- layouts


def layouts() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    x, c = torch.randn(40, 2, 30, 12), torch.randn(2, 9, 12)
    wide = torch.randn(500, 40)  # more rows than one block of the kernel
    return {
        "batch dims": (x, c[0]),
        "sliced rows": (wide[3::2], wide[:7]),
        "sliced columns": (wide[:, 5:17], wide[100:109, 20:32]),
        "every second column": (wide[:, ::2], wide[:9, 1::2]),
        "transposed": (torch.randn(12, 300).T, torch.randn(12, 9).T),
        "transposed heads": (x.transpose(1, 2), c[1]),  # bug 15: gave garbage clusters elsewhere
        "permuted": (x.permute(3, 1, 0, 2), torch.randn(30, 9).T),
        "expanded rows": (wide[:1].expand(300, 40), wide[:9]),
        "expanded columns": (wide[:, :1].expand(500, 12), c[0]),
        "expanded centroids": (wide, wide[7:8].expand(5, 40)),
        "offset": (wide.view(-1)[7 : 7 + 600].view(50, 12), c.view(-1)[3 : 3 + 108].view(9, 12)),
        "overlapping": (wide.view(-1).as_strided((300, 12), (5, 1)), c[0]),
        "flipped": (wide.flip(1), wide[:9].flip(0)),
        "neg bit": (torch.randn(40, 12, dtype=torch.complex64).conj().imag, c[0]),
        "one vector": (x[0, 0, 0], c[0]),
        "no batch, size 0": (x[:0], c[0]),
        "inner size 0": (x[:, :, :0], c[0]),
    }


@every_path
@pytest.mark.parametrize("name", list(layouts()))
def test_bug15_layouts(name, path):
    x, c = layouts()[name]
    with running(path) as backend:
        ids, value = ops.nearest_centroid(x, c, return_distance=True, backend=backend)
        dense = ops.nearest_centroid(x.clone(), c.clone(), backend=backend)
    assert ids.shape == value.shape == x.shape[:-1]
    np.testing.assert_array_equal(ids.numpy(), nearest_ids(x, c, "euclidean"))
    assert torch.equal(ids, dense)
    assert ids.is_contiguous()


@every_path
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_vectors_of_no_width(path, metric):
    with running(path) as backend:
        ids = ops.nearest_centroid(
            torch.zeros(3, 0), torch.zeros(4, 0), metric=metric, backend=backend
        )
    assert ids.tolist() == [0, 0, 0]


def test_inputs_are_not_written():
    x, c = data()
    before = x.clone(), c.clone()
    ops.nearest_centroid(x, c, return_distance=True)
    assert_same((x, c), before)


def test_inputs_that_require_grad():
    x, c = data()
    ids, value = ops.nearest_centroid(x.requires_grad_(), c.requires_grad_(), return_distance=True)
    assert not ids.requires_grad
    assert not value.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_ignored(dtype):
    x, c = data(d=300)
    x = c[torch.randint(50, (500,))] + 1e-4 * x  # bfloat16 could not tell some of these apart
    plain = ops.nearest_centroid(x, c, return_distance=True)
    with torch.autocast("cpu", dtype=dtype):
        assert_same(ops.nearest_centroid(x, c, return_distance=True), plain)


@pytest.mark.slow
def test_bug11_more_than_2_to_31_elements():
    """Rows of stride 0 make 2^31 elements without the memory."""
    c = torch.randn(3, 2**10)
    x = c[2:3].expand(2**21 + 5, 2**10)
    assert x.numel() > 2**31
    assert (ops.nearest_centroid(x, c, backend="cpu") == 2).all()


@pytest.mark.slow
def test_bug11_offsets_beyond_2_to_31_elements():
    """Real memory, 4 GiB of float16: the last rows lie beyond 2^31 elements and differ."""
    x = torch.zeros(2**21 + 3, 2**10, dtype=torch.float16)
    c = torch.stack([torch.zeros(2**10), torch.ones(2**10)])
    x[-2] = 1
    ids = ops.nearest_centroid(x, c, backend="cpu")
    assert ids[-4:].tolist() == [0, 0, 1, 0]
    assert ids.sum() == 1


# ---- one right answer, however it is asked


def test_thread_counts(threads):
    x, c = data(n=3000)
    check_threads(threads, lambda: ops.nearest_centroid(x, c, return_distance=True))


@every_path
def test_batch_splits(path):
    """Ids and distances of a row do not depend on the rows around it."""
    x, c = data(n=700)
    with running(path) as backend:
        whole = ops.nearest_centroid(x, c, return_distance=True, backend=backend)
        for size in (1, 13, 224, 225):
            parts = [
                ops.nearest_centroid(p, c, return_distance=True, backend=backend)
                for p in x.split(size)
            ]
            assert_same([torch.cat(t) for t in zip(*parts, strict=True)], whole)


def test_paths_agree_bit_for_bit():
    x, c = data(d=100)
    results = []
    for path in usable_paths()[1:]:
        with running(path) as backend:
            results.append(ops.nearest_centroid(x, c, return_distance=True, backend=backend))
    for other in results[1:]:
        assert_same(other, results[0])


def test_centroid_order_only_renames():
    x, c = data(n=400)
    order = torch.randperm(50)
    assert torch.equal(order[ops.nearest_centroid(x, c[order])], ops.nearest_centroid(x, c))


@every_path
def test_assignment_stats(path):
    x, c = data(n=300)
    x[7, 3] = float("nan")
    x[9] = (c[3] + c[4]) / 2
    grid = torch.randint(-1, 2, (300, 4)).float()
    with running(path) as backend:
        with ops.record_stats():
            ops.nearest_centroid(x, c, backend=backend)
        stats = ops.assignment_stats()
        assert (stats.rows, stats.invalid, stats.undecided) == (300, 1, 0)
        assert stats.filter + stats.float32 + stats.float64 + stats.exact == 299
        if path != "reference":
            assert stats.filter > 250
        with ops.record_stats():
            ops.nearest_centroid(grid, grid[:40], backend=backend)
        assert ops.assignment_stats().exact > 50
        ops.nearest_centroid(x, c, backend=backend)  # outside the block: not recorded
        assert ops.assignment_stats().exact > 50


def test_assignment_stats_need_a_recording():
    def ask() -> None:
        check_refusal(ops.assignment_stats, RuntimeError, "record_stats")

    fresh = threading.Thread(target=ask)  # the last recording belongs to a thread
    fresh.start()
    fresh.join()


# ---- refusals


def test_refusals():
    x, c = data(n=4, d=8, k=3)
    call = ops.nearest_centroid
    for wrong, error, words in (
        (
            lambda: call(x.numpy(), c),
            TypeError,
            ("x must be a torch.Tensor", "ndarray", "from_numpy"),
        ),
        (lambda: call(x, c.tolist()), TypeError, ("centroids", "list")),
        (
            lambda: call(x.int(), c),
            TypeError,
            ("x must be of dtype", "float64", "int32", "patch_tokens"),
        ),
        (lambda: call(x.to(torch.complex64), c), TypeError, ("x must", "complex64")),
        (lambda: call(x, c.to(torch.uint8)), TypeError, ("centroids", "uint8")),
        (lambda: call(x, c[0]), ValueError, ("centroids must be 2-dimensional [K, D]", "(8,)")),
        (lambda: call(x, c[None]), ValueError, ("centroids", "(1, 3, 8)")),
        (lambda: call(x, c[:0]), ValueError, ("centroids", "K >= 1", "(0, 8)")),
        (lambda: call(x, c[:, :7]), ValueError, ("x must be [..., D]", "= 7", "(4, 8)")),
        (lambda: call(torch.tensor(1.0), c), ValueError, ("x must be [..., D]", "()")),
        (
            lambda: call(x, c, metric="l2"),
            ValueError,
            ("metric", "'euclidean', 'cosine', 'dot'", "'l2'"),
        ),
        (lambda: call(x.to("meta"), c), ValueError, ("centroids", "on meta", "cpu")),
        (lambda: call(x.to_sparse(), c), TypeError, ("x", "strided", "to_dense")),
    ):
        check_refusal(wrong, error, "nearest_centroid: ", *words)
    with pytest.raises(TypeError, match="positional"):
        call(x, c, "cosine")


# ---- the registry and the compiler


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["nearest_centroid", "nearest_centroid_distance"])
def test_opcheck(name, backend):
    overload = getattr(torch.ops.clustermim, name).default
    for x, c in (data(n=9, d=4, k=3), (torch.randn(2, 0, 4), torch.randn(3, 4).double())):
        check_opcheck(overload, x, c, "euclidean", backend)
    check_opcheck(
        overload, torch.randn(3, 4, 5).transpose(0, 2).half(), torch.randn(3, 3), "dot", backend
    )


@pytest.mark.parametrize("want", [False, True])
def test_compile_fullgraph(want):
    x, c = data(n=20)

    def call(x, c):
        return ops.nearest_centroid(2 * x, c, return_distance=want)

    check_compile(call, x, c)


@pytest.mark.slow
def test_compile_with_inductor():
    x, c = data(n=20)
    check_compile(lambda x, c: ops.nearest_centroid(2 * x, c) + 1, x, c, compiler="inductor")
