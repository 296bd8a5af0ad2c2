"""KMeans and tokenizers over the ranks of a gloo group, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizers import rank_cases

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


@pytest.fixture(scope="module")
def single():
    """The results of one process without torch.distributed."""
    return rank_cases.run(0, 1)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def group(request, tmp_path_factory):
    """Each rank's results of all cases; one group of processes for all tests here."""
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    done = subprocess.run(
        [sys.executable, "-m", "tests.tokenizers.rank_cases", str(folder), str(world)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = [folder / f"{world}_{rank}.npy" for rank in range(world)]
    return [np.load(file, allow_pickle=True).item() for file in files]


@pytest.mark.parametrize("name", sorted(rank_cases.CASES))
def test_as_in_one_process(single, group, name):
    ranks = [rank[name] for rank in group]
    for found in (single[name], *ranks):
        assert "failure" not in found, found["failure"]
    for key, expected in single[name].items():
        if key.startswith("own_"):
            continue
        if key == "labels":
            if len(expected) != len(ranks[0]["labels"]):  # a batch's labels: parts of it
                joined = np.concatenate([rank["labels"] for rank in ranks])
            else:
                joined = ranks[0]["labels"]
            assert np.array_equal(joined, expected)
            continue
        for rank in ranks[1:]:
            assert np.array_equal(rank[key], ranks[0][key]), f"{key}: ranks differ"
        values = np.asarray(ranks[0][key])
        exact = name in rank_cases.EXACT and not (key == "inertia" and "cosine" in name)
        if exact or values.dtype.kind in "iu":
            assert np.array_equal(values, expected), key
        else:
            # Of the scale of the data: the sums of the ranks are rounded in another order.
            scale = np.abs(expected).max()
            assert np.abs(values - expected).max() <= 1e-12 * scale, key


MESSAGES = {
    "nan": "NaN or infinity in row 3 of rank {last}",
    "nan_batch": "NaN or infinity in row 3 of rank {last}",
    "rows": "n_samples=601 should be >= n_clusters=700",
    "zero_weights": "must have a value > 0, got zeros only",
    "k": "KMeans: parameters must be the same on every rank; ranks 0 and 1 differ",
    "dim": "KMeans: X must be the same on every rank",
    "seed": "tokenizer fit: settings must be the same on every rank",
    "size": "tokenizer fit: dtype and shape of the images must be the same on every rank",
}


# What the last rank alone cannot use: it gives the reason, the others name it.
ALONE = {
    "dtype": "X must be a dense tensor of dtype",
    "vector": "Expected 2D array, got 1D array instead",
    "one_weight": "sample_weight must be finite and >= 0",
    "tol": "tol must be a number >= 0",
    "random_state": "random_state must be",
    "init": "init must have shape",
    "later_batch": "X has 3 features, but KMeans is expecting 5",
    "values": "must lie in [0, 1] before normalisation",
    "clusters": "num_clusters must be an int >= 1, got 0",
    "start": "init must be one of",
    "half": "std must be given where mean is",
    "loader": "must lie in [0, 1] before normalisation",
}


@pytest.mark.parametrize("name", sorted(ALONE))
def test_what_one_rank_refuses_no_rank_waits_for(group, name):
    *others, last = [rank["refusals"][f"own_{name}"] for rank in group]
    assert ALONE[name] in last
    assert "refused its input" not in last
    for message in others:
        assert f"rank {len(group) - 1} of {len(group)} refused its input" in message
        assert ALONE[name] in message


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_what_one_rank_cannot_do_every_rank_refuses(group, name):
    for rank in group:
        assert MESSAGES[name].format(last=len(group) - 1) in rank["refusals"][f"own_{name}"]
