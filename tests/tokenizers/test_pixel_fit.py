"""PixelTokenizer.fit: tensors and loaders, quality, determinism, bounded memory, refusals."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import sklearn.cluster
import torch
from torch.utils.data import DataLoader, TensorDataset

from clustermim_fast import KMeans
from clustermim_fast.counter_rng import STREAM_KMEANS, permutation
from clustermim_fast.ranks import ALONE
from clustermim_fast.tokenizers import PixelTokenizer
from clustermim_fast.tokenizers.image_rows import ImageRows, PatchSettings, StreamRows
from clustermim_fast.tokenizers.rows import MatrixRows

MEAN, STD = (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)


def all_rows(images, p=4, mean=MEAN, std=STD, order="hwc"):
    return PatchSettings(p, mean, std, patch_order=order).rows(images)


@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_lloyd_is_kmeans_on_the_patch_matrix(digits, order):
    """Same start, then the same centroids; the matrix exists in this test only."""
    tokenizer = PixelTokenizer.fit(
        digits, 12, 4, mean=MEAN, std=STD, patch_order=order, algorithm="lloyd", max_iter=30, tol=0
    )
    x = all_rows(digits, order=order)
    again = KMeans(12, init=tokenizer.centroids, max_iter=1, tol=0).fit(x)
    assert again.inertia_ <= tokenizer.report.inertia * (1 + 1e-6)
    assert tokenizer.report.inertia == pytest.approx(again.report_.iterations[0].inertia, rel=1e-6)
    assert torch.equal(
        tokenizer(digits).flatten().bincount(minlength=12).double(),
        torch.tensor(tokenizer.report.counts, dtype=torch.float64),
    )
    # As good as a fit that starts from all rows, up to the luck of the start.
    free = min(KMeans(12, random_state=s).fit(x).inertia_ for s in range(3))
    assert tokenizer.report.inertia < 1.1 * free


def test_minibatch_is_nearly_as_good_as_lloyd(digits):
    options = {"mean": MEAN, "std": STD, "seed": 1}
    lloyd = PixelTokenizer.fit(digits, 16, 4, algorithm="lloyd", **options)
    batches = PixelTokenizer.fit(digits, 16, 4, batch_size=32, **options)
    assert batches.report.inertia < 1.15 * lloyd.report.inertia
    assert len(batches.report.iterations) == 10
    assert batches.report.exact
    assert sum(batches.report.counts) == batches.report.num_rows == 400 * 16


@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd"])
def test_uint8_and_float_images_give_the_same_centroids(digits, algorithm):
    options = {"mean": MEAN, "std": STD, "algorithm": algorithm, "max_iter": 3}
    a = PixelTokenizer.fit(digits, 8, 4, **options)
    b = PixelTokenizer.fit(digits.float() / 255, 8, 4, **options)
    torch.testing.assert_close(a.centroids, b.centroids, atol=1e-6, rtol=0)
    assert torch.equal(a(digits), b(digits.float() / 255))
    strided = digits.to(memory_format=torch.channels_last)
    c = PixelTokenizer.fit(strided, 8, 4, **options)
    assert c.fingerprint() == a.fingerprint()


@pytest.mark.parametrize("algorithm", ["minibatch", "lloyd", "clustermim"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("per_patch_norm", [False, True])
def test_same_bits_at_one_two_and_three_threads(digits, algorithm, metric, per_patch_norm, threads):
    prints = set()
    for count in (1, 2, 3):
        threads(count)
        options = {"algorithm": algorithm, "metric": metric, "per_patch_norm": per_patch_norm}
        tokenizer = PixelTokenizer.fit(digits[:60], 20, 4, max_iter=2, batch_size=32, **options)
        prints.add(tokenizer.fingerprint())
    assert len(prints) == 1


def test_seed_and_order_of_the_images(digits):
    fits = [PixelTokenizer.fit(digits, 8, 4, max_iter=1, batch_size=16, seed=s) for s in (0, 0, 1)]
    assert fits[0].fingerprint() == fits[1].fingerprint() != fits[2].fingerprint()


def test_sorted_images_do_no_harm():
    """ClusterMIM's flaw: unshuffled batches; the start, too, saw the first class only."""
    dark = torch.randint(0, 30, (300, 3, 8, 8), dtype=torch.uint8)
    light = torch.randint(200, 256, (300, 3, 8, 8), dtype=torch.uint8)
    images = torch.cat([dark, light])
    tokenizer = PixelTokenizer.fit(images, 10, 4, max_iter=1, batch_size=20)
    used = [len(set(tokenizer(part).flatten().tolist())) for part in (dark, light)]
    assert min(used) >= 2
    loader = DataLoader(TensorDataset(images), batch_size=20)
    with pytest.warns(UserWarning, match="does not shuffle.*shuffle=True"):
        tokenizer = PixelTokenizer.fit(loader, 10, 4, max_iter=1)
    used = [len(set(tokenizer(part).flatten().tolist())) for part in (dark, light)]
    assert min(used) >= 2
    lloyd = {"algorithm": "lloyd", "max_iter": 3}  # takes whole passes: no order, no warning
    ordered = PixelTokenizer.fit(loader, 10, 4, **lloyd)
    mixed = PixelTokenizer.fit(images[torch.randperm(600)].split(50), 10, 4, **lloyd)
    assert ordered.fingerprint() == mixed.fingerprint()


def test_loaders(digits):
    labels = torch.arange(400)
    shuffled = DataLoader(TensorDataset(digits, labels), batch_size=64, shuffle=True)
    tokenizer = PixelTokenizer.fit(shuffled, 16, 4, mean=MEAN, std=STD, max_iter=5)
    whole = PixelTokenizer.fit(digits, 16, 4, mean=MEAN, std=STD, max_iter=5, batch_size=64)
    x = all_rows(digits)
    reached = [KMeans(16, init=t.centroids, max_iter=1).fit(x).report_ for t in (tokenizer, whole)]
    assert reached[0].iterations[0].inertia < 1.1 * reached[1].iterations[0].inertia
    assert tokenizer.report.num_rows == 6400
    assert not tokenizer.report.exact


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_lloyd_pass_does_not_depend_on_the_batches(digits, metric):
    """Sums of uint8 images are exact: any split and order gives the same bits."""
    settings = PatchSettings(4, MEAN, STD)
    centers = ImageRows(digits, settings, metric).take(np.arange(0, 6400, 640)).double()
    whole = ImageRows(digits, settings, metric).lloyd_step(centers)
    sample = MatrixRows(centers.float(), None, metric)
    for size in (1, 37, 400):
        parts = [ImageRows(part, settings, metric) for part in digits.flip(0).split(size)]
        step = StreamRows(lambda parts=parts: parts, sample, True, ALONE).lloyd_step(centers)
        assert torch.equal(step.sums, whole.sums)
        assert torch.equal(step.counts, whole.counts)
        if metric == "euclidean":
            assert step.inertia == whole.inertia
        else:  # costs of unit rows are not integers: each batch's sum is rounded
            assert step.inertia == pytest.approx(whole.inertia, rel=1e-12)


@pytest.mark.parametrize("kind", ["tensor", "loader"])
def test_clustermims_protocol_is_scikit_learns_partial_fit(kind):
    """The same seed and batches give MiniBatchKMeans' centroids, re-assignments included."""
    images = torch.randint(60, 120, (300, 3, 8, 8), dtype=torch.uint8)
    images[::100, :, :4, :4] += 130  # three patches far from the rest: a starved cluster
    batches = [
        images[torch.from_numpy(permutation(1, epoch, 300, STREAM_KMEANS)[start : start + 128])]
        for epoch in range(3)
        for start in range(0, 300, 128)
    ]
    theirs = sklearn.cluster.MiniBatchKMeans(5, random_state=1)
    for batch in batches:
        theirs.partial_fit(all_rows(batch).double().numpy())

    class Shuffled:  # a loader with another order in each pass
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(batches[3 * self.passes - 3 : 3 * self.passes])

    given = images if kind == "tensor" else Shuffled()
    options = {"mean": MEAN, "std": STD, "algorithm": "clustermim", "seed": 1}
    ours = PixelTokenizer.fit(given, 5, 4, max_iter=3, batch_size=128, **options)
    np.testing.assert_allclose(ours.centroids.numpy(), theirs.cluster_centers_, atol=2e-6)
    assert ours.report.reseeded > 0
    assert ours.report.algorithm == "clustermim"
    assert ours.report.num_rows == 300 * 4
    with pytest.raises(ValueError, match=r"first batch has 4 patches.*use larger batches"):
        PixelTokenizer.fit(images, 5, 4, batch_size=1, **options)


def test_lloyd_over_a_loader(digits):
    tokenizer = PixelTokenizer.fit(digits.split(50), 8, 4, algorithm="lloyd", max_iter=60, tol=0)
    assert tokenizer.report.converged
    assert tokenizer.report.exact
    assert tokenizer.report.num_rows == 6400
    rows = all_rows(digits, mean=None, std=None)
    again = KMeans(8, init=tokenizer.centroids, tol=0).fit(rows)
    assert again.n_iter_ <= 2
    assert again.inertia_ == pytest.approx(tokenizer.report.inertia, rel=1e-6)


def test_fewer_distinct_patches_than_clusters():
    images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
    images[:5, :, :4] = 255
    with pytest.warns(UserWarning, match="2 of 4 centroids are nearest to no patch"):
        tokenizer = PixelTokenizer.fit(images, 4, 4, algorithm="lloyd")
    assert tokenizer.report.unused == 2
    assert tokenizer.report.inertia == 0
    assert torch.equal(tokenizer.decode(tokenizer(images)), images.float() / 255)


def test_refusals(digits):
    floats = digits.float() / 255
    normal = (floats - 0.3) / 0.2
    fit = PixelTokenizer.fit
    for data, message in [
        (normal, r"must lie in \[0, 1\].*mean= and std=.*normalized=True.*divide by 255"),
        (floats * 255, r"got values from 0 to 255.*divide by 255"),
        ([normal], "images of batch 0 must lie in"),
        (
            torch.where(torch.arange(400)[:, None, None, None] == 7, torch.nan, floats),
            "NaN or infinity, first in image 7",
        ),
        (digits[:, :, :15], "15 x 16 pixels, not multiples of patch_size = 4"),
        (digits.permute(0, 2, 3, 1), r"16 x 3 pixels.*pass images.permute\(0, 3, 1, 2\)"),
        (digits[:1], "have 16 patches, fewer than num_clusters = 20"),
        ([digits[:1]], "have 16 patches, fewer than num_clusters = 20"),
        ([], "gave no batch"),
        (digits[:0], "have 0 patches, fewer than num_clusters = 20"),
        ([digits[:0]], "gave no image"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(data, 20, 4)
    for data, message in [
        (digits[0], "images must be uint8 or floating"),
        (digits.int(), "images must be uint8 or floating"),
        (iter([digits]), "iterator, which ends after one pass"),
        (5, "a tensor .* or an iterable"),
        ([digits.numpy()], "must give image tensors.*got ndarray"),
    ]:
        with pytest.raises(TypeError, match=message):
            fit(data, 4, 4)
    for change, message in [
        ({"algorithm": "elkan"}, "algorithm must be one of"),
        ({"metric": "dot"}, "metric must be one of"),
        ({"max_iter": 0}, "max_iter must be an int >= 1"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "mean must have one value a channel"),
        ({"patch_order": "x"}, "patch_order must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(digits, 4, 4, **change)
    fit(floats * 1.9 - 0.45, 4, 4, max_iter=1)  # a little outside [0, 1] is interpolation


def test_progress_bar_only_when_asked(digits, capsys):
    PixelTokenizer.fit(digits[:50], 4, 4, max_iter=1)
    assert capsys.readouterr().err == ""
    PixelTokenizer.fit(digits[:50], 4, 4, max_iter=1, verbose=True)
    assert "pixel tokenizer K=4" in capsys.readouterr().err


def test_peak_memory_is_the_images_and_64_mib():
    """In its own process, above what small fits have already loaded and allocated.

    CCViT's protocol ("lloyd" on "chw" patches of 16 x 16) and the others, of a tensor and of a
    loader.
    """
    script = """
        import resource, torch
        from clustermim_fast.tokenizers import PixelTokenizer
        torch.set_num_threads(1)
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        images = torch.zeros(2_000, 3, 64, 64, dtype=torch.uint8)
        images.random_(0, 256)
        def fit(images, batch):
            options = {"patch_order": "chw", "tol": 0.0}
            for algorithm, passes in (("lloyd", 1), ("minibatch", 1), ("clustermim", 1)):
                options |= {"algorithm": algorithm, "max_iter": passes}
                for given in (images, images.split(batch)):
                    PixelTokenizer.fit(given, 8, 16, **options)
        fit(images[:100], 10)
        before = peak()
        fit(images, 100)
        print((peak() - before) / 2**20)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 64  # the float patch matrix would be 94 MiB
