"""The benchmarks' programs run from end to end on a few images, and their small parts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("timm", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

from benchmarks.assignment import tables, worst_cases
from benchmarks.cache import Cache, content_key
from benchmarks.ops.bench_nearest_centroid import _without
from benchmarks.workloads import IMAGENET, Rows, normalised, patchify, thinned
from tests.ops.truth import nearest_ids

REPOSITORY = Path(__file__).resolve().parent.parent


def test_cache_keeps_by_content(tmp_path):
    cache, made = Cache(tmp_path / "new"), []

    def make():
        made.append(1)
        return torch.arange(3)

    a, b = torch.zeros(2), torch.ones(2)
    for rows in (a, a, b):
        found = cache.tensor("ids", content_key(rows, 5), make)
        assert found.tolist() == [0, 1, 2]
    assert len(made) == 2
    assert content_key(a) != content_key(a.double())
    assert content_key(a) != content_key(a.reshape(2, 1))
    assert content_key("x", 1) != content_key("x", 2)


def test_some_images_keep_their_rows():
    images = torch.arange(6)[:, None]
    x = torch.arange(24.0).reshape(12, 2)
    data = Rows(x, torch.zeros(1, 2), np.arange(12), images, per_image=2)
    some = data.some(3)
    assert some.images[:, 0].tolist() == thinned(6, 3).tolist() == [0, 2, 4]
    assert some.truth.tolist() == [0, 1, 4, 5, 8, 9]
    assert torch.equal(some.x, x[some.truth])
    assert data.some(6) is data


def test_peers_pipeline_sees_the_pixels_of_the_truth():
    """torchvision's normalise, step by step, against the rows that truth was found for."""
    from torchvision.transforms.functional import normalize

    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    theirs = normalize(images.float().div_(255), IMAGENET.mean, IMAGENET.std, inplace=True)
    assert torch.equal(theirs, normalised(images, IMAGENET))
    assert patchify(theirs, 16)[0, 1, :3].tolist() == theirs[0, :, 0, 16].tolist()


def test_worst_cases_are_what_they_say():
    x, c = torch.randn(20, 6), torch.randn(9, 6)
    data = worst_cases.worst_data(x, c)
    rows, centroids = data["every centroid equally far"]
    assert (nearest_ids(rows, centroids, "euclidean") == 0).all()
    assert len(centroids.unique(dim=0)) > 1
    assert data["offset 1e5"][0].min() > 9e4
    far = data["one centroid 1e4 times the rest"][1].norm(dim=1) / c.norm(dim=1)
    assert (far > 2).sum() == 1


def test_goals_are_looked_up():
    row = {"workload": "cifar50", "section": "rows", "dim": 48, "held": "", "kind": "ours"}
    ours = row | {"method": "ours", "ratio_to_best_peer": 3.7, "wrong_ids": 0}
    assert "| yes |" in tables.goal_table([ours])
    assert "| NO |" in tables.goal_table([ours | {"ratio_to_best_peer": 3.5}])
    assert "cifar50" not in tables.goal_table([ours | {"method": "ours, avx2"}])
    assert "| 1.8 |" in tables.goal_table([ours | {"method": "ours, avx512"}])
    held = ours | {"method": "ours, avx2", "held": "avx2"}
    assert "peers held to avx2" in tables.goal_table([held])


def test_options_of_the_campaign_are_left_out_for_its_processes():
    given = ["--data", "d", "--threads", "2", "1", "--rounds", "3", "--json=x", "--isa"]
    kept = _without(given, ("--threads", "--json"))
    assert kept == ["--data", "d", "--rounds", "3", "--isa"]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    ("module", "settings", "expected"),
    [
        (
            "benchmarks.ops.bench_nearest_centroid",
            "--threads 1 --workloads cifar50 --peers torch sklearnex --max-seconds 0.01",
            ["| **ours** |", "held to avx2", "Goals", "every centroid equally far", "MiB above"],
        ),
        (
            "benchmarks.ops.bench_nearest_centroid",
            "--threads 1 --workloads cifar512 rp1000 --check-only",
            ["cifar512 patch_tokens generic 0 wrong of 640", "rp1000 nearest_centroid auto 0"],
        ),
        (
            "benchmarks.ops.bench_kmeans",
            "--threads 1 --workloads cifar50 --max-seconds 0.01",
            ["ours: KMeans", "faiss.Kmeans", "x MiniBatch"],
        ),
        (
            "benchmarks.codebook_claim",
            "--threads 1 --clusters 20 --iterations 2 --batch 1 --max-seconds 0.01",
            ["PixelTokenizer.fit, K = 20", "dVAE-like CNN encoder"],
        ),
    ],
)
def test_programs_run(module, settings, expected, data_dir, tmp_path):
    pytest.importorskip("faiss", reason="the extra [bench] is not installed")
    rounds = [] if "check-only" in settings else ["--rounds", "1"]
    arguments = ["--data", str(data_dir), "--cache", str(tmp_path), "--images", "10"]
    path = os.pathsep.join([str(REPOSITORY), *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, *rounds, *settings.split()],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for text in expected:
        assert text in done.stdout
