"""TCAS and its companions: degenerate cases by hand, formulas in exact fractions, one pass."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from sklearn.metrics import normalized_mutual_info_score

from clustermim_fast.tokenizers import (
    PixelTokenizer,
    tcas,
    token_class_counts,
    token_statistics,
)

EVERY = ("default", "A", "B", "C")


def by_hand(counts, variant, weight="frequency", balanced=False):
    """Sums over pairs and tokens, one term at a time."""
    n = [[Fraction(int(v)) for v in row] for row in counts]
    classes, tokens = len(n), len(n[0])
    p = [[v / sum(row) for v in row] for row in n]
    if variant == "C":
        used = p if balanced else n
        columns = [[row[k] for row in used] for k in range(tokens)]
        total = sum(map(sum, columns))
        alive = [column for column in columns if sum(column)]
        value = Fraction(0)
        for column in alive:
            w = sum(column) / total if weight == "frequency" else Fraction(1, len(alive))
            value += w * sum((v / sum(column)) ** 2 for v in column)
        return float(1 - value)

    def s(a, b):
        return sum(p[a][k] * p[b][k] for k in range(tokens))

    pairs = list(itertools.permutations(range(classes), 2))
    if variant == "B":
        return float(sum(s(a, b) for a, b in pairs) / len(pairs))
    cosines = [float(s(a, b)) / math.sqrt(s(a, a) * s(b, b)) for a, b in pairs]
    if variant == "A":
        return sum(cosines) / len(pairs)
    return sum(c * c for c in cosines) / classes**2


@pytest.mark.parametrize("seed", range(4))
def test_formulas(seed):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 9, (5, 7)) * (random.random((5, 7)) < 0.7)
    counts[:, 3] = 0  # a dead token
    counts[0, 0] += 1
    counts += np.eye(5, 7, dtype=int)
    for variant in EVERY:
        assert tcas(counts, variant) == pytest.approx(by_hand(counts, variant), abs=1e-12)
        assert tcas(torch.from_numpy(counts), variant) == tcas(counts.astype(float), variant)
    for weight, balanced in itertools.product(("frequency", "uniform"), (False, True)):
        found = tcas(counts, "C", token_weight=weight, balance_classes=balanced)
        assert found == pytest.approx(by_hand(counts, "C", weight, balanced), abs=1e-12)


def with_switches(counts, variant, rows, columns, pairs):
    """The definition by loops: columns, then rows divided, then products of rows."""
    n = [[float(v) for v in row] for row in counts]

    def size(values, by):
        root = math.sqrt(sum(v * v for v in values))
        return {"l1": sum(values), "l2": root, "none": 1.0}[by] or 1.0

    by_column = [size(column, columns) for column in zip(*n, strict=True)]
    n = [[v / s for v, s in zip(row, by_column, strict=True)] for row in n]
    n = [[v / size(row, rows) for v in row] for row in n]
    chosen = [
        sum(a * b for a, b in zip(n[c], n[d], strict=True))
        for c in range(len(n))
        for d in range(len(n))
        if pairs == "all" or c != d
    ]
    if variant == "default":
        return sum(v * v for v in chosen) / len(n) ** 2
    return sum(chosen) / len(chosen)


@pytest.mark.parametrize("variant", ["default", "A", "B"])
def test_switches(variant):
    counts = np.random.default_rng(5).integers(0, 6, (4, 6))
    counts[:, 2] = 0  # a dead token has no size to divide by
    kinds = ("l2", "l1", "none")
    for rows, columns, pairs in itertools.product(kinds, kinds, ("different", "all")):
        found = tcas(counts, variant, rows=rows, columns=columns, pairs=pairs)
        wanted = with_switches(counts, variant, rows, columns, pairs)
        assert found == pytest.approx(wanted, rel=1e-12), (rows, columns, pairs)
    own = {"default": "l2", "A": "l2", "B": "l1"}[variant]
    assert tcas(counts, variant) == tcas(counts, variant, rows=own)
    assert tcas(counts, "A", rows="l1") == tcas(counts, "B")


def test_degenerate_tables():
    """The anchors: one token, tokens independent of class, tokens = classes, tokens = patches."""
    c = 4
    one = np.full((c, 1), 30)
    independent = np.outer(np.full(c, 10), np.ones(6, dtype=int))
    for table, k in ((one, 1), (independent, 6)):
        assert tcas(table) == pytest.approx((c - 1) / c)
        assert tcas(table, "A") == pytest.approx(1)
        assert tcas(table, "B") == pytest.approx(1 / k)
        assert tcas(table, "C") == pytest.approx(1 - 1 / c)
        assert token_statistics(table).nmi == pytest.approx(0, abs=1e-12)
    identity = 25 * np.eye(c, dtype=int)
    own = np.kron(np.eye(c, dtype=int), np.ones((1, 25), dtype=int))  # every patch its own token
    for table in (identity, own):
        for variant in EVERY:
            assert tcas(table, variant) == pytest.approx(0, abs=1e-15)
    assert token_statistics(identity).nmi == pytest.approx(1)
    # What tells the two apart, and why patches a token stand beside TCAS.
    assert token_statistics(identity).patches_per_token == 25 / 4
    assert token_statistics(own).patches_per_token == 25 / 100


@pytest.mark.parametrize("seed", range(3))
def test_a_token_split_at_random_into_two(seed):
    """Halves s everywhere: A, C and the default stay, B rewards the larger K for nothing."""
    counts = 2 * np.random.default_rng(seed).integers(1, 20, (4, 5))
    split = np.repeat(counts // 2, 2, axis=1)
    for variant in ("default", "A", "C"):
        assert tcas(split, variant) == pytest.approx(tcas(counts, variant))
    assert tcas(split, "B") == pytest.approx(tcas(counts, "B") / 2)


def test_large_tables_stay_in_range():
    counts = np.random.default_rng(0).integers(0, 3, (50, 4000)).astype(np.int64) * 10**12
    for variant in EVERY:
        assert 0 <= tcas(counts, variant) <= 1


def test_companions():
    counts = np.array([[5, 0, 2, 0], [1, 0, 7, 3]])
    found = token_statistics(counts)
    labels = [c for c, row in enumerate(counts) for n in row for _ in range(n)]
    tokens = [k for row in counts for k, n in enumerate(row) for _ in range(n)]
    assert found.nmi == pytest.approx(normalized_mutual_info_score(labels, tokens))
    assert found.purity == pytest.approx((5 + 7 + 3) / 18)
    shares = [6 / 18, 9 / 18, 3 / 18]
    assert found.perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert (found.dead, found.tokens, found.patches, found.classes) == (1, 4, 18, 2)
    assert found.patches_per_token == 7 / 4


def test_empty_classes_are_left_out_and_said():
    counts = np.array([[3, 1], [0, 0], [1, 4]])
    with pytest.warns(UserWarning, match="1 classes have no token and are left out: 1"):
        assert tcas(counts) == tcas(counts[[0, 2]])


def test_refusals():
    for counts, message in [
        (np.zeros((3, 2)), "two classes at least, got 0 of 3"),
        (np.array([[1, 2]]), "two classes at least, got 1 of 1"),
        (np.ones(3), r"table \[C, K\]"),
        (np.zeros((2, 0)), r"table \[C, K\]"),
        (np.array([[1, -1], [1, 1]]), "finite and >= 0"),
        (np.array([[1, np.nan], [1, 1]]), "finite and >= 0"),
    ]:
        for function in (tcas, token_statistics):
            with pytest.raises(ValueError, match=message):
                function(counts)
    with pytest.raises(ValueError, match="variant must be one of default, A, B, C; got 'D'"):
        tcas(np.eye(2), "D")
    for switch in ({"rows": "l3"}, {"columns": "L1"}, {"pairs": "same"}):
        with pytest.raises(ValueError, match=f"{next(iter(switch))} must be one of"):
            tcas(np.eye(2), **switch)
    for switch in ({"rows": "l1"}, {"columns": "l1"}, {"pairs": "all"}):
        with pytest.raises(ValueError, match="variant C compares no pairs"):
            tcas(np.eye(2), "C", **switch)
    with pytest.raises(ValueError, match="token_weight must be"):
        tcas(np.eye(2), "C", token_weight="k")


def tokenizers():
    generator = torch.Generator().manual_seed(0)
    return [
        PixelTokenizer.from_centroids(torch.rand(k, 48, generator=generator), 4) for k in (3, 8)
    ]


def test_counts_in_one_pass():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(20, 3, 8, 8, generator=generator)
    images[3, 0, 0, 0] = torch.nan  # one patch without a token
    labels = torch.randint(0, 3, (20,), generator=generator)
    passes = 0

    class Once:
        def __iter__(self):
            nonlocal passes
            passes += 1
            yield from zip(images.split(7), labels.split(7), strict=True)

    found = token_class_counts(tokenizers(), Once())
    assert passes == 1
    for tokenizer, table in zip(tokenizers(), found, strict=True):
        wanted = torch.zeros(3, tokenizer.num_clusters, dtype=torch.int64)
        for ids, label in zip(tokenizer(images).tolist(), labels.tolist(), strict=True):
            for token in ids:
                if token >= 0:
                    wanted[label, token] += 1
        assert torch.equal(table, wanted)
        assert int(table.sum()) == 20 * 4 - 1
        assert torch.equal(token_class_counts(tokenizer, Once()), table)
    more = token_class_counts(tokenizers()[0], Once(), num_classes=5)
    assert more.shape == (5, 3)
    assert int(more[3:].sum()) == 0


def test_counts_refuse():
    images = torch.rand(4, 3, 8, 8)
    tokenizer = tokenizers()[0]
    for labels, classes, message in [
        (torch.zeros(3, dtype=torch.int64), None, r"labels must be integers \[4\]"),
        (torch.zeros(4), None, "labels must be integers"),
        (torch.tensor([0, 1, 2, -1]), None, "lie in 0 and more, got -1 .. 2"),
        (torch.tensor([0, 1, 2, 3]), 3, r"lie in 0 .. 2, got 0 .. 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            token_class_counts(tokenizer, [(images, labels)], classes)
