"""docs/migrating.md: both columns of every line are typed here as they stand, and agree."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

pytest.importorskip("sklearn", reason="the extra [train] is not installed")

import sklearn.cluster
import torch
import torch.nn.functional as F
from torch import nn

from clustermim_fast import KMeans, ops
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "migrating.md"


def lines() -> list[tuple[str, str]]:
    """The pairs of code of the page's tables; "the same" is the line above."""
    pairs: list[tuple[str, str]] = []
    line = r"^\| (`.+?`) \| (`.+?`|the same) \|"
    for before, after in re.findall(line, PAGE.read_text("utf-8"), re.M):
        pairs.append((before.strip("`"), pairs[-1][1] if after == "the same" else after.strip("`")))
    return pairs


def names() -> dict[str, object]:
    """What the page's setting promises."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    x, c, p = normal(300, 20), normal(8, 20), 4
    head = nn.Linear(16, 8)
    centres = sklearn.cluster.KMeans(8, init=x[:8].numpy(), n_init=1).fit(x.numpy())
    return {
        "x": x, "c": c, "p": p, "chw": torch.rand(9, 48, generator=draw), "head": head,
        "kmeans": centres, "start": x[:8].numpy(),
        "hidden": normal(3, 17, 16).requires_grad_(), "logits": normal(3, 16, 8).requires_grad_(),
        "target": torch.randint(0, 8, (3, 16), generator=draw),
        "mask": torch.rand(3, 16, generator=draw) < 0.6,
        "images": torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=draw),
        "torch": torch, "F": F, "ops": ops, "KMeans": KMeans, "sklearn": sklearn,
    }  # fmt: skip


def flat_index(c: torch.Tensor) -> object:
    faiss = pytest.importorskip("faiss", reason="the extra [bench] is not installed")
    index = faiss.IndexFlatL2(c.shape[1])
    index.add(c.numpy())
    return index


@pytest.mark.parametrize(("before", "after"), lines(), ids=[b[:50] for b, _ in lines()])
def test_a_line_gives_what_it_replaces(before, after):
    known = names()
    if "index." in before:
        known["index"] = flat_index(known["c"])
    results = []
    for code in (before, after):
        value = torch.as_tensor(eval(code, dict(known)))
        leaves = [known["hidden"], known["logits"], *known["head"].parameters()]
        gradients = [None] * 4
        if value.requires_grad:
            gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        results.append(SimpleNamespace(value=value.detach(), gradients=gradients))
    theirs, ours = results
    if not theirs.value.is_floating_point():
        assert torch.equal(theirs.value.long(), ours.value)
        assert len(theirs.value.unique()) > 3
        return
    # float32 sums of at most 48 terms near 1, twice: a few hundred roundings of 6e-8
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-5, atol=1e-6)
    for mine, yours in zip(ours.gradients, theirs.gradients, strict=True):
        assert (mine is None) == (yours is None)
        if mine is not None:
            torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-6)


def test_every_line_of_the_page_is_typed():
    rows = [r for r in PAGE.read_text("utf-8").splitlines() if r.startswith("| `")]
    assert len(lines()) == len(rows) == 14


def test_a_mask_of_another_dtype():
    known = names()
    logits, target, mask = (known[name] for name in ("logits", "target", "mask"))
    assert torch.equal(
        ops.masked_cross_entropy(logits, target, mask.float()),
        ops.masked_cross_entropy(logits, target, mask),
    )
