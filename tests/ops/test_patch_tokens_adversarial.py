"""patch_tokens on adversarial patches, on every path of this machine: no token may be wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend
from tests.ops.adversarial import GENERATORS, make
from tests.ops.adversarial_patches import PATCH_GENERATORS, make_patches
from tests.ops.harness import METRICS, every_cpu_path, fewer, running, usable_paths
from tests.ops.patch_rows import MEMORY, Layout
from tests.ops.truth import nearest_ids

IMAGENET = ((0.485, 0.456, 0.406, 0.44), (0.229, 0.224, 0.225, 0.22))
NORMS = (
    (None, None),
    IMAGENET,
    ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)),
    ((-3.0, 2.5, 40.0, -0.1), (1.0, 2.0, 0.5, 1.0)),  # means outside of [0, 1]
    ((0.1, 0.9, 0.5, 0.0), (1e-3, 1e-3, 1e-3, 1e-3)),
    ((0.0, 1.0, 0.5, 0.25), (1e-3, 1e3, 1.0, 30.0)),  # channels of unlike size
    ((0.0,) * 4, (0.25, 0.26, 0.27, 0.28)),
    ((1e4, -1e4, 0.0, 0.5), (1.0,) * 4),
)
SIZES = (1, 2, 4, 7, 8, 14, 16, 32)
CODEBOOKS = (1, 2, 7, 50, 100, 257)
NAMES = tuple(PATCH_GENERATORS)


def check(rows, c, layout, *, mean=None, std=None, metric="euclidean", memory="dense",
          per_patch_norm=False, dtype=None, grid=(2, 3)) -> np.ndarray:  # fmt: skip
    rows = rows[: fewer(len(rows), 12)]
    images = MEMORY[memory](layout.images(rows, grid))
    if dtype is not None:
        images = images.to(dtype)
        rows = layout_rows(images, layout, grid)
    x = torch.from_numpy(layout.values(rows, mean, std, per_patch_norm))
    expected = nearest_ids(x, c, metric)
    for name in usable_paths()[1:]:
        with running(name) as backend:
            ids = ops.patch_tokens(
                images, c, layout.p, mean=mean, std=std, per_patch_norm=per_patch_norm,
                patch_order=layout.order, metric=metric, backend=backend,
            )  # fmt: skip
        assert ids.shape == (len(images), grid[0] * grid[1])
        wrong = np.flatnonzero(ids.numpy().ravel() != expected)
        assert len(wrong) == 0, (
            f"{name}: {len(wrong)} wrong of {len(expected)}, patch {wrong[0]}: "
            f"{ids.flatten()[wrong[0]]}, not {expected[wrong[0]]}"
        )
    return expected


def layout_rows(images: torch.Tensor, layout: Layout, grid: tuple[int, int]) -> np.ndarray:
    """The rows that ``layout.images`` laid out, read back by the same indices."""
    values, (i, j, c) = images.double().numpy(), layout.places()
    return np.stack(
        [
            values[b, c, top * layout.p + i, left * layout.p + j]
            for b, top, left in itertools.product(range(len(values)), *map(range, grid))
        ]
    )


def take(norm, channels):
    return {
        name: None if values is None else values[:channels]
        for name, values in zip(("mean", "std"), norm, strict=True)
    }


def covering(names: tuple[str, ...], per_name: int) -> list[tuple]:
    """Each kind of patches with ``per_name`` of the combinations of all other choices."""
    cases = []
    for index, name in enumerate(names):
        for j in range(per_name):
            turn = per_name * index + j
            p, channels = SIZES[(3 * turn + index) % 8], (3, 1, 4, 3, 2, 3)[(turn + index) % 6]
            order = ("hwc", "chw")[(turn // 2 + index) % 2]
            k = CODEBOOKS[(5 * turn + index) % 6]
            norm, memory = (turn + index) % len(NORMS), tuple(MEMORY)[(turn + 2 * index) % 9]
            metric = METRICS[turn % 3] if j == 1 else "euclidean"
            cases.append((name, p, channels, order, k, norm, memory, metric))
    return cases


def describe(case) -> str:
    return "-".join(str(part) for part in case)


def count(layout: Layout, k: int) -> int:
    return 66 if layout.d * k < 100_000 else 18 if layout.d * k < 300_000 else 6


@pytest.mark.parametrize("case", covering(NAMES, 5), ids=describe)
def test_uint8(case):
    name, p, channels, order, k, norm, memory, metric = case
    layout, norm = Layout(p, channels, order), take(NORMS[norm], channels)
    rows, c = make_patches(name, count(layout, k), k, layout, **norm)
    check(rows, torch.from_numpy(c), layout, **norm, memory=memory, metric=metric)


@pytest.mark.parametrize("name", NAMES)
def test_uint8_of_real_shapes(name):
    """The shapes that a path may have a kernel of its own for, dense and as decoders give them."""
    for (p, k, n), memory in itertools.product(
        ((4, 50, 130), (16, 100, 34)), ("dense", "channels_last")
    ):
        layout, norm = Layout(p, 3, "hwc" if memory == "dense" else "chw"), take(IMAGENET, 3)
        rows, c = make_patches(name, n, k, layout, **norm)
        check(rows, torch.from_numpy(c), layout, **norm, memory=memory, grid=(1, 2))


@pytest.mark.parametrize("case", covering(NAMES, 1), ids=describe)
def test_uint8_per_patch_norm(case):
    name, p, channels, order, k, norm, memory, metric = case
    layout, norm = Layout(max(p, 2), channels, order), take(NORMS[norm], channels)
    rows, c = make_patches(name, 30, k, layout, **norm)
    own = layout.values(rows, **norm, per_patch_norm=True)[: k // 2]
    c[: len(own)] = own
    check(
        rows, torch.from_numpy(c), layout, **norm, memory=memory, metric=metric,
        per_patch_norm=True,
    )  # fmt: skip


FLOATING = (torch.float32, torch.float32, torch.bfloat16, torch.float32, torch.float16)


@pytest.mark.parametrize("case", covering(tuple(GENERATORS), 2), ids=describe)
def test_floating_images(case):
    """Images whose patches are the rows of nearest_centroid's adversarial set."""
    name, p, channels, order, k, _, memory, metric = case
    layout = Layout(p, channels, order)
    turn = zip(GENERATORS, itertools.cycle(FLOATING), strict=False)
    dtype = dict(turn)[name]
    x, c = make(name, count(layout, k), layout.d, k, metric, dtype, torch.float32)
    rows = x.double().numpy()
    check(rows, c, layout, memory=memory, metric=metric, dtype=dtype)


def test_floating_images_normalised():
    """Mean and standard deviation act on floating pixels too, NaN spoils one patch only."""
    for name, norm in itertools.product(("gaussian", "not_finite", "constant_columns"), NORMS):
        layout, norm = Layout(4, 3), take(norm, 3)
        x, c = make(name, 30, 48, 50)
        x = x.clamp(-1, 2).numpy()
        c[::2] = torch.from_numpy(layout.values(x[:25], **norm)) * 1.001
        check(x, c, layout, **norm, dtype=torch.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_threads_splits_and_order(metric, threads):
    layout, norm = Layout(4, 3, "chw"), take(IMAGENET, 3)
    made = [make_patches(name, 120, fewer(10, 2), layout, **norm) for name in NAMES]
    rows, c = (np.concatenate(part) for part in zip(*made, strict=True))
    rows = rows[:: fewer(1, len(rows) // 12)][: fewer(len(rows), 12)]
    c = torch.from_numpy(c)
    expected = check(rows, c, layout, **norm, metric=metric).reshape(-1, 6)
    images = layout.images(rows)
    order = torch.randperm(len(images))
    for name in usable_paths()[1:]:
        with running(name) as backend:

            def ids(some, backend=backend):
                return ops.patch_tokens(
                    some, c, 4, **norm, patch_order="chw", metric=metric, backend=backend
                ).numpy()

            for number in (2, 3, 1)[: fewer(3, 1)]:
                threads(number)
                np.testing.assert_array_equal(ids(images), expected, err_msg=name)
            for size in (1, 7, 37):
                parts = np.concatenate([ids(part) for part in images[:80].split(size)])
                np.testing.assert_array_equal(parts, expected[:80], err_msg=f"{name}: by {size}")
            np.testing.assert_array_equal(ids(images[order]), expected[order], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_lloyd_step_images_assigns_alike(name):
    layout, norm = Layout(8, 3), take(IMAGENET, 3)
    rows, c = make_patches(name, fewer(60, 12), 30, layout, **norm)
    c = torch.from_numpy(c)
    expected = nearest_ids(torch.from_numpy(layout.values(rows, **norm)), c, "euclidean")
    for path in usable_paths()[1:]:
        with running(path) as backend:
            ids, _, counts, _ = ops.lloyd_step_images(
                layout.images(rows), c, 8, **norm, backend=backend
            )
        np.testing.assert_array_equal(ids.flatten().numpy(), expected, err_msg=path)
        assert counts.sum() == (expected >= 0).sum()


@every_cpu_path
def test_the_set_has_teeth(path):
    """Without the margins of the certificate many of these tokens are wrong on every path."""
    layout, norm, core = Layout(8, 3), take(IMAGENET, 3), _backend.core()
    rows, c = make_patches("between_integers", 132, 50, layout, **norm)
    images, c = layout.images(rows), torch.from_numpy(c)
    with running(path) as backend:
        right = ops.patch_tokens(images, c, 8, **norm, backend=backend)
        core.set_certified(certified=False)
        try:
            rounded = ops.patch_tokens(images, c, 8, **norm, backend=backend)
        finally:
            core.set_certified(certified=True)
    assert (right != rounded).sum() > 12


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", NAMES)
def test_uint8_every_size(name, metric):
    for turn, (p, channels) in enumerate(itertools.product(SIZES, (1, 2, 3, 4))):
        layout = Layout(p, channels, ("hwc", "chw")[turn % 2])
        norm, k = take(NORMS[(turn + turn // 8) % 8], channels), (7, 100, 257)[turn % 3]
        rows, c = make_patches(name, count(layout, k), k, layout, **norm)
        memory = tuple(MEMORY)[turn % 9]
        check(rows, torch.from_numpy(c), layout, **norm, memory=memory, metric=metric)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_uint8_large_codebook(name):
    for p in (1, 4, 16):
        layout, norm = Layout(p, 3), take(IMAGENET, 3)
        rows, c = make_patches(name, 6, 8192, layout, **norm)
        check(rows, torch.from_numpy(c), layout, **norm)


@pytest.mark.slow
def test_more_than_2_to_31_different_pixels():
    """2.1 GiB of uint8: the first, the last and 10,000 random patches against the truth."""
    images = torch.empty(14_400, 3, 224, 224, dtype=torch.uint8)
    assert images.numel() > 2**31
    images.random_(0, 256)
    layout, norm = Layout(16, 3), take(IMAGENET, 3)
    c = torch.randn(5, layout.d)
    ids = ops.patch_tokens(images, c, 16, **norm, backend="cpu").flatten()
    which = torch.cat([torch.tensor([0, 1, len(ids) - 1]), torch.randint(len(ids), (10_000,))])
    i, j, channel = (torch.from_numpy(at) for at in layout.places())
    image, patch = which // 196, which % 196
    rows = images[
        image[:, None], channel, (patch // 14 * 16)[:, None] + i, (patch % 14 * 16)[:, None] + j
    ]
    expected = nearest_ids(torch.from_numpy(layout.values(rows.numpy(), **norm)), c, "euclidean")
    assert np.bincount(expected).min() > 100
    np.testing.assert_array_equal(ids[which].numpy(), expected)
