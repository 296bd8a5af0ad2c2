"""Are our clusterings as good as scikit-learn's? Inertia on patches of real images, no timings.

    python -m benchmarks.kmeans_quality [--seeds 20] [--starts 3] [--full] [--data DIR]

Equal start: Lloyd from the same first centroids (scikit-learn's k-means++), ours beside
``sklearn.cluster.KMeans``; the difference is (ours - theirs) / theirs. Over seeds: both draw their
own first centroids, ours at seeds that theirs never had, so that the two are independent samples;
p is the one-sided Mann-Whitney test of "ours are larger". Inertia is that of the returned
centroids on all rows of the set, in float64 by neither library. ``--full``: the equal starts on
every patch of the sets (half an hour), from first centroids found on a sample of them.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn.cluster
import torch
from scipy.stats import mannwhitneyu

from benchmarks.harness import REPOSITORY, machine, markdown_table, say
from benchmarks.workloads import CIFAR, IMAGENET, ImageSource, load_images, patch_rows, thinned
from clustermim_fast import KMeans

OWN_SEEDS = 1000  # ours start here, scikit-learn's at 0


@dataclass(frozen=True)
class Case:
    name: str
    source: ImageSource
    num_clusters: int
    images: int  # their patches are the set of the equal starts
    sample: int  # rows of it on which the seeds are compared


CASES = (
    Case("CIFAR-10, D 48", CIFAR, 50, 1_500, 20_000),
    Case("ImageNet, D 768", IMAGENET, 100, 100, 10_000),
)


def inertia(rows: np.ndarray, centers: np.ndarray) -> float:
    """Sum of squared distances to the nearest of ``centers``, from float64 differences."""
    total = 0.0
    for block in np.array_split(rows, max(1, len(rows) // 2_000)):
        x = block.astype(np.float64)
        products = x @ centers.astype(np.float64).T
        nearest = (np.square(centers.astype(np.float64)).sum(1) - 2 * products).argmin(1)
        total += float(np.square(x - centers[nearest]).sum())
    return total


def equal_starts(rows: np.ndarray, num_clusters: int, seeds: int) -> list[str]:
    """Cells: largest relative difference of inertia and of labels, iterations."""
    differences, moved, iterations = [], [], []
    sample = rows[thinned(len(rows), min(len(rows), 100_000)).numpy()]
    for seed in range(seeds):
        start, _ = sklearn.cluster.kmeans_plusplus(sample, num_clusters, random_state=seed)
        theirs = sklearn.cluster.KMeans(num_clusters, init=start, n_init=1).fit(rows)
        ours = KMeans(num_clusters, init=start).fit(rows)
        reached = inertia(rows, theirs.cluster_centers_)
        differences.append(inertia(rows, ours.cluster_centers_) / reached - 1)
        moved.append(float((ours.labels_ != theirs.labels_).mean()))
        iterations.append(f"{ours.n_iter_} / {theirs.n_iter_}")
    worst = max(differences, key=abs)
    return [f"{100 * worst:+.5f} %", f"{100 * max(moved):.3f} %", ", ".join(iterations)]


def over_seeds(rows: np.ndarray, num_clusters: int, seeds: int, algorithm: str) -> list[str]:
    """Cells: means and spreads of both, ratio of the means, p."""

    def theirs(seed: int) -> np.ndarray:
        kind = sklearn.cluster.KMeans if algorithm == "lloyd" else sklearn.cluster.MiniBatchKMeans
        return kind(num_clusters, n_init=1, random_state=seed).fit(rows).cluster_centers_

    def ours(seed: int) -> np.ndarray:
        model = KMeans(num_clusters, algorithm=algorithm, n_init=1, random_state=OWN_SEEDS + seed)
        if algorithm == "minibatch":
            model.set_params(max_iter=100, tol=0.0)  # MiniBatchKMeans' defaults
        return model.fit(rows).cluster_centers_

    a = np.array([inertia(rows, ours(seed)) for seed in range(seeds)])
    b = np.array([inertia(rows, theirs(seed)) for seed in range(seeds)])
    p = mannwhitneyu(a, b, alternative="greater").pvalue
    cells = [f"{v.mean():.0f} ± {v.std(ddof=1):.0f}" for v in (a, b)]
    return [*cells, f"{a.mean() / b.mean():.4f}", f"{p:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    print(machine())
    starts, seeds = [], []
    for case in CASES:
        images = None if options.full else case.images
        rows = patch_rows(load_images(options.data, case.source, images), case.source).numpy()
        k = case.num_clusters
        starts.append([case.name, f"{len(rows):,}", k, *equal_starts(rows, k, options.starts)])
        say(str(starts[-1]))
        sample = rows[thinned(len(rows), case.sample).numpy()]
        for algorithm in ("lloyd", "minibatch"):
            cells = over_seeds(sample, k, options.seeds, algorithm)
            seeds.append([case.name, f"{len(sample):,}", k, algorithm, *cells])
        say(f"{case.name}: done")
    print("\nEqual start, Lloyd (largest of each)\n")
    columns = ["rows of", "number", "K", "inertia, ours against scikit-learn's", "labels differ"]
    print(markdown_table([*columns, "iterations, ours / theirs"], starts))
    print(f"\n{options.seeds} seeds each\n")
    columns = ["rows of", "number", "K", "algorithm", "inertia, ours", "scikit-learn's", "ratio"]
    print(markdown_table([*columns, "p (ours larger)"], seeds))


if __name__ == "__main__":
    main()
