"""The bounds of docs/certificate.md against emulated roundings: never exceeded, attained, needed.

The filter and the bounds are recomputed here from the document's equations (certificate_model.py);
nothing is read from the package, which has to give the right ids on the same inputs all the same.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend
from tests.ops.adversarial import GENERATORS, make
from tests.ops.assignment import check_compiled
from tests.ops.certificate_model import BFLOAT16, FORMATS, Filtered
from tests.ops.harness import METRICS, fewer, running, usable_paths
from tests.ops.low_precision import float32
from tests.ops.truth import nearest_ids
from tests.ops.worst_cases import CASES, NOT_ATTAINED, anchored

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def truth(x: np.ndarray, c: np.ndarray, metric: str) -> np.ndarray:
    return nearest_ids(torch.from_numpy(x), torch.from_numpy(c), metric)


# ---- every term has an input that almost attains it, and on which the rule fails without it


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_ATTAINED])
def test_the_bound_is_attained(name):
    """What the nearest lacks in computed score, as a share of what the certificate allows."""
    _, metric, fmt, (x, c) = CASES[name]
    assert truth(x, c, metric) == 0
    filtered = Filtered(x, c, metric, fmt)
    share = filtered.needed()[0, 0] / filtered.margins()[0, 0]
    assert 0.5 <= share <= 1.0
    assert filtered.candidates()[0, 0]


@pytest.mark.parametrize("name", CASES)
def test_the_term_is_needed(name):
    """Without its term the rule drops the nearest centroid: the other one would be the answer."""
    term, metric, fmt, (x, c) = CASES[name]
    kept = Filtered(x, c, metric, fmt, without=(term,)).candidates()[0]
    assert kept.tolist() == [False, True]


def for_the_core(name):
    """The case as float64 tensors; enough rows that the core does not compare them directly."""
    _, metric, fmt, case = CASES[name]
    x, c = anchored(case, metric)
    return torch.from_numpy(x).repeat(fewer(20, 2), 1), torch.from_numpy(c), metric, fmt


@pytest.mark.parametrize("name", CASES)
def test_the_core_is_right_on_the_same_input(name):
    x, c, metric, _ = for_the_core(name)
    for offset in (0.0, 1.0, -64.0):
        check_compiled(x + offset, c + offset, metric)
    check_compiled(x.float(), c.float(), metric)
    check_compiled(*(torch.from_numpy(values) for values in CASES[name][3]), metric)


@pytest.mark.parametrize("name", CASES)
def test_the_core_without_its_margins_errs_as_the_emulation_says(name):
    """On the real instructions, with every margin zero, the other centroid wins all rows."""
    x, c, metric, fmt = for_the_core(name)
    paths = [p for p in usable_paths()[1:] if (p == "amx") == (fmt is BFLOAT16)]
    if not paths:
        pytest.skip("this machine has no tiles")
    core = _backend.core()
    for path in paths:
        with running(path) as backend:
            core.set_certified(certified=False)
            try:
                ids = ops.nearest_centroid(x, c, metric=metric, backend=backend)
            finally:
                core.set_certified(certified=True)
        assert (ids == 1).all(), path


# ---- random search never passes a bound


def searched(fmt, metric, d, n=24, k=20):
    """Every generator's rows and centroids, brought to a size that the filter is given."""
    for name in GENERATORS:
        if name in {"not_finite", "scale_1e-38", "scale_1e+37", "subnormal"}:
            continue
        x, c = (t.double().numpy() for t in make(name, n, d, k, metric))
        if metric == "cosine":
            norms = np.sqrt(np.square(c / np.abs(c).max()).sum(1)) * np.abs(c).max()
            c = c / np.where(norms > 0, norms, 1.0)[:, None]
        size = np.ldexp(1.0, np.frexp(np.median(np.abs(c[c != 0])))[1])
        c = c / size
        if metric == "euclidean":
            centre = np.median(c, axis=0)
            x, c = x / size - centre, c - centre  # rounded to float64: the values are what they are
        usable = (np.abs(c) < 2.0**40).all(1)
        x = x[(np.abs(x) < 2.0**60).all(1)]
        if len(x) and usable.any():
            yield name, x, c[usable]


@every_format
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 3, 17, 48, 100])
def test_no_bound_is_exceeded(fmt, metric, d):
    rule = "dot" if metric == "cosine" else metric  # of normalised centroids
    for name, x, c in searched(fmt, metric, d):
        filtered = Filtered(x, c, rule, fmt)
        wrong = np.abs(filtered.computed - filtered.exact) > filtered.error * (1 + 2.0**-20)
        assert not wrong.any(), f"{name}: a score errs by more than its bound"
        for values, rounded, bound in (
            (float32(x), filtered.xr, filtered.x_residual),
            (c, filtered.cr, filtered.c_residual),
        ):
            moved = np.sqrt(np.square(values - rounded).sum(1))
            assert (moved <= bound * (1 + 2.0**-20) + 2.0**-140).all(), f"{name}: a rounding"
        winners = truth(x, c, rule)
        kept = filtered.candidates()[np.arange(len(x)), winners]
        assert kept.all(), f"{name}: row {np.flatnonzero(~kept)[0]} loses its nearest centroid"


@pytest.mark.parametrize("name", CASES)
def test_no_bound_is_exceeded_near_the_worst_cases(name):
    """A random search around each of them: values moved by some units of their last places."""
    _, metric, fmt, (x, c) = CASES[name]
    random = np.random.default_rng(0)
    for _ in range(100 if x.shape[1] < 10 else 4):
        units = 2.0 ** -random.integers(fmt.bits - 1, fmt.bits + 17, (2, 1))
        moved = x * (1 + units[0] * random.integers(-2, 3, x.shape))
        apart = c * (1 + units[1] * random.integers(-2, 3, c.shape))
        winner = truth(moved, apart, metric)[0]
        filtered = Filtered(moved, apart, metric, fmt)
        assert filtered.candidates()[0, winner]
        assert (np.abs(filtered.computed - filtered.exact) <= filtered.error).all()
