"""Fits that every rank runs on its part of the data; ``test_kmeans_ranks.py`` compares them.

As a script: ``python -m tests.tokenizers.rank_cases FOLDER 3`` runs all cases in a gloo group of 3
processes of one thread and writes each rank's results. Imported, the same functions run in one
process.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from clustermim_fast import KMeans
from clustermim_fast.tokenizers import FeatureTokenizer, PixelTokenizer

Results = dict[str, Any]
CASES: dict[str, Callable[[int, int], Results]] = {}
# Bit-equal for any number of ranks; the rest within rounding of float64 sums.
EXACT: set[str] = set()


def case(exact: bool = False, **options: Any) -> Callable[[Callable[..., Results]], Any]:
    """Register a function of (rank, world), once for each value where ``options`` has a list."""

    def register(function: Callable[..., Results]) -> Callable[..., Results]:
        name, values = next(iter(options.items()), ("", [None]))
        for value in values:
            title = function.__name__ + (f"_{value}" if name else "")
            chosen = {name: value} if name else {}
            CASES[title] = lambda rank, world, chosen=chosen: function(rank, world, **chosen)
            if exact:
                EXACT.add(title)
        return function

    return register


def part(x: Any, rank: int, world: int) -> Any:
    """Rank's share: consecutive, of different sizes."""
    if world == 1:
        return x
    ends = [0, *(len(x) * np.cumsum(np.arange(1, world + 1)) // (world * (world + 1) // 2))]
    return x[ends[rank] : ends[rank + 1]]


def blobs(n: int = 601, d: int = 5, k: int = 7, dtype: Any = np.float64) -> Any:
    random = np.random.default_rng(0)
    centers = 4 * random.normal(size=(k, d))
    return (centers[random.integers(0, k, n)] + random.normal(size=(n, d))).astype(dtype)


def outcome(model: KMeans) -> Results:
    """``labels`` are the rank's own; the rest must be the same on every rank."""
    found = {
        "labels": np.asarray(model.labels_),
        "centers": np.asarray(model.cluster_centers_),
        "inertia": model.inertia_,
    }
    if hasattr(model, "report_"):
        report = model.report_
        found["n_iter"] = model.n_iter_
        found["counts"] = report.counts
        found["num_rows"] = report.num_rows
        found["moved"] = [-1 if i.moved is None else i.moved for i in report.iterations]
        found["empty"] = [i.empty for i in report.iterations]
        found["inertias"] = [i.inertia for i in report.iterations]
        found["reseeded"] = report.reseeded
    return found


@case(dtype=["float64", "float32"])
def given_start(rank: int, world: int, dtype: str) -> Results:
    x = blobs(dtype=dtype)
    return outcome(KMeans(7, init=x[:7], tol=0).fit(part(x, rank, world)))


@case(init=["k-means++", "random"])
def drawn_start(rank: int, world: int, init: str) -> Results:
    x = blobs(dtype=np.float32)
    model = KMeans(9, init=init, n_init=3, random_state=4)
    return outcome(model.fit(part(x, rank, world)))


@case()
def drawn_start_among_ties(rank: int, world: int) -> Results:
    """Corners of a cube, 40 times each: trials gain the same but for the rounding of their sums."""
    corners = 0.1 + 0.7 * (np.arange(8)[:, None] >> np.arange(3) & 1)
    x = np.random.default_rng(0).permutation(np.repeat(corners, 40, axis=0))
    models = [
        KMeans(4, max_iter=1, tol=0, random_state=seed).fit(part(x, rank, world))
        for seed in range(12)
    ]
    return {"centers": np.stack([model.cluster_centers_ for model in models])}


@case()
def weights(rank: int, world: int) -> Results:
    x = blobs()
    w = np.random.default_rng(1).integers(0, 4, len(x)).astype(float)
    w[:150] = 0  # so that the first of three ranks has no weight at all
    model = KMeans(7, random_state=0)
    return outcome(model.fit(part(x, rank, world), sample_weight=part(w, rank, world)))


@case()
def empty_clusters(rank: int, world: int) -> Results:
    x = blobs()
    start = np.concatenate([x[:3], 1e3 + np.arange(20.0).reshape(4, 5)])
    w = np.random.default_rng(1).random(len(x))
    model = KMeans(7, init=start, max_iter=5, tol=0)
    found = outcome(model.fit(part(x, rank, world), sample_weight=part(w, rank, world)))
    assert found["reseeded"] >= 4
    return found


@case()
def cosine(rank: int, world: int) -> Results:
    model = KMeans(6, metric="cosine", random_state=0)
    return outcome(model.fit(part(blobs(), rank, world)))


@case()
def one_rank_without_rows(rank: int, world: int) -> Results:
    x = blobs()
    mine = x if rank == 0 else x[:0]
    return outcome(KMeans(7, random_state=0).fit(mine))


@case()
def fewer_rows_on_a_rank_than_clusters(rank: int, world: int) -> Results:
    return outcome(KMeans(12, random_state=0).fit(part(blobs(n=20), rank, world)))


@case(dtype=["bfloat16", "float16"])
def half_precision(rank: int, world: int, dtype: str) -> Results:
    x = torch.from_numpy(blobs()).to(getattr(torch, dtype))
    return outcome(KMeans(7, random_state=1).fit(part(x, rank, world)))


@case()
def minibatch_fit(rank: int, world: int) -> Results:
    x = blobs()
    w = np.random.default_rng(1).random(len(x))
    model = KMeans(7, algorithm="minibatch", batch_size=64, max_iter=8, random_state=0, n_init=2)
    return outcome(model.fit(part(x, rank, world), sample_weight=part(w, rank, world)))


@case()
def partial_fits(rank: int, world: int) -> Results:
    """Batches of different sizes, the last ones with no row on some ranks; starved clusters."""
    x = blobs()
    model = KMeans(7, algorithm="minibatch", random_state=3)
    for begin, end in ((0, 101), (101, 350), (350, 600), (600, 601)):
        model.partial_fit(part(x[begin:end], rank, world))
    model.labels_ = model.predict(part(x, rank, world))
    return outcome(model)


@case()
def partial_fit_after_fit(rank: int, world: int) -> Results:
    x = blobs()
    model = KMeans(7, random_state=3).fit(part(x[:400], rank, world))
    model.partial_fit(part(x[400:], rank, world))
    return outcome(model)


@case()
def seed_from_nowhere(rank: int, world: int) -> Results:
    """No seed, and each rank's global state another: still the same centroids everywhere."""
    np.random.seed(rank)  # noqa: NPY002
    model = KMeans(7).fit(part(blobs(), rank, world))
    state = np.random.RandomState(rank)  # rank 0's counts
    same = KMeans(7, random_state=state).fit(part(blobs(), rank, world))
    return {"centers": same.cluster_centers_, "shape": model.cluster_centers_.shape}


@case()
def refusals(rank: int, world: int) -> Results:
    """Every rank raises, and the group goes on working."""
    x = blobs()
    bad = part(x, rank, world).copy()
    if rank == world - 1:
        bad[3, 1] = np.nan
    calls = {
        "nan": lambda: KMeans(7).fit(bad),
        "nan_batch": lambda: KMeans(7).partial_fit(bad),
        "rows": lambda: KMeans(700).fit(part(x, rank, world)),
        "zero_weights": lambda: KMeans(2).fit(bad, sample_weight=np.zeros(len(bad))),
    }
    if world > 1:
        calls["k"] = lambda: KMeans(3 + rank).fit(part(x, rank, world))
        calls["dim"] = lambda: KMeans(3).fit(part(x, rank, world)[:, : 3 + min(rank, 1)])
        mine, last = part(x, rank, world), rank == world - 1
        weight = np.full(len(mine), np.nan if last else 1.0)
        seed = "seed" if last else 0
        tail = mine[:, :3] if last else mine
        calls["dtype"] = lambda: KMeans(3).fit(torch.from_numpy(mine.astype(int) if last else mine))
        calls["vector"] = lambda: KMeans(3).fit(mine[:, 0] if last else mine)
        calls["one_weight"] = lambda: KMeans(3).fit(mine, sample_weight=weight)
        calls["tol"] = lambda: KMeans(3, tol=-1.0 if last else 1e-4).fit(mine)
        calls["random_state"] = lambda: KMeans(3, random_state=seed).fit(mine)
        calls["init"] = lambda: KMeans(3, init=tail[:3]).fit(mine)
        calls["later_batch"] = lambda: KMeans(3).partial_fit(mine).partial_fit(tail)
        images = torch.zeros(9, 3, 8, 8, dtype=torch.uint8)
        floats = torch.full((9, 3, 8, 8), 200.0 if last else 0.5)
        calls["values"] = lambda: PixelTokenizer.fit(floats, 2, 4)
        calls["loader"] = lambda: PixelTokenizer.fit([images, floats if last else images], 2, 4)
        count = 0 if last else 2
        calls["clusters"] = lambda: PixelTokenizer.fit(images, count, 4)
        init = "kmeans" if last else "random"
        calls["start"] = lambda: PixelTokenizer.fit(images, 2, 4, init=init)
        calls["half"] = lambda: PixelTokenizer.fit(images, 2, 4, mean=0.5, std=None if last else 1)
        calls["seed"] = lambda: PixelTokenizer.fit(images, 2, 4, seed=rank)
        calls["size"] = lambda: PixelTokenizer.fit(images[..., : 4 + 4 * min(rank, 1)], 2, 4)
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[f"own_{name}"] = "no error"
        except (TypeError, ValueError) as error:
            found[f"own_{name}"] = str(error)
    return found


def images(count: int = 130) -> torch.Tensor:
    """uint8 [count, 3, 8, 8]: blocks of colour and noise."""
    random = np.random.default_rng(3)
    colours = random.integers(0, 256, (count, 3, 2, 2)).repeat(4, axis=2).repeat(4, axis=3)
    noise = random.integers(-20, 21, (count, 3, 8, 8))
    return torch.from_numpy((colours + noise).clip(0, 255).astype(np.uint8))


def tokenizer_outcome(tokenizer: PixelTokenizer) -> Results:
    report = tokenizer.report
    assert report is not None
    return {
        "centers": tokenizer.centroids.numpy(),
        "counts": report.counts,
        "num_rows": report.num_rows,
        "inertia": report.inertia,
        "moved": [-1 if i.moved is None else i.moved for i in report.iterations],
    }


PIXELS = {
    "lloyd": {"algorithm": "lloyd", "max_iter": 6},
    "lloyd_random": {"algorithm": "lloyd", "max_iter": 6, "init": "random"},
    "minibatch": {"max_iter": 3, "batch_size": 17},
    "clustermim": {"algorithm": "clustermim", "max_iter": 3, "batch_size": 50},
    "per_patch_norm": {"algorithm": "lloyd", "max_iter": 4, "per_patch_norm": True},
    "cosine": {"algorithm": "lloyd", "max_iter": 4, "metric": "cosine"},
    "cosine_minibatch": {"metric": "cosine", "max_iter": 2, "batch_size": 17},
}
MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


@case(exact=True, kind=list(PIXELS))
def pixels(rank: int, world: int, kind: str) -> Results:
    options: Any = {"mean": MEAN, "std": STD, "seed": 2, **PIXELS[kind]}
    return tokenizer_outcome(PixelTokenizer.fit(part(images(), rank, world), 30, 4, **options))


@case(exact=True, kind=list(PIXELS))
def pixel_loaders(rank: int, world: int, kind: str) -> Results:
    """Each rank's batches are parts of the global ones; some have none of the last."""
    batches = [*images().split(60), images()[:2] + 1]
    mine = [part(batch, rank, world) for batch in batches]
    if len(mine[-1]) == 0:
        mine.pop()
    options: Any = {"mean": MEAN, "std": STD, "seed": 2, **PIXELS[kind]}
    options.pop("batch_size", None)
    return tokenizer_outcome(PixelTokenizer.fit(mine, 30, 4, **options))


@case(exact=True)
def pixels_on_one_rank_only(rank: int, world: int) -> Results:
    mine = images() if rank == 0 else images()[:0]
    return tokenizer_outcome(PixelTokenizer.fit(mine, 30, 4, algorithm="lloyd", max_iter=3))


@case()
def float_images(rank: int, world: int) -> Results:
    mine = part(images().float() / 255, rank, world)
    return tokenizer_outcome(PixelTokenizer.fit(mine, 30, 4, algorithm="lloyd", max_iter=4))


@case(exact=True, algorithm=["lloyd", "minibatch"])
def features(rank: int, world: int, algorithm: str) -> Results:
    """Whole numbers only: a network's features differ in their last bits from batch to batch."""
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    batches = [part(batch, rank, world) for batch in images().split(26)]
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_file(vit.state_dict(), file.name)
        tokenizer = FeatureTokenizer.fit(
            batches,
            6,
            "vit_tiny_patch16_224",
            weights=file.name,
            model_options=options,
            algorithm=algorithm,
            max_iter=3,
        )
    assert tokenizer.report is not None
    assert tokenizer.pictures is not None
    counts = np.array(tokenizer.report.counts).astype(np.int64)
    return {"counts": counts, "pictures": tokenizer.pictures.numpy(), "rows": counts.sum()}


def run(rank: int, world: int) -> dict[str, Results]:
    results = {}
    for name, function in CASES.items():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                results[name] = function(rank, world)
            except Exception:  # noqa: BLE001  each case is a test of its own
                results[name] = {"failure": traceback.format_exc()}
    return results


def one_rank(folder: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    found = np.array(run(rank, world), dtype=object)
    np.save(f"{folder}/{world}_{rank}.npy", found, allow_pickle=True)
    torch.distributed.destroy_process_group()


def main(folder: str, world: int) -> int:
    """How many ranks failed. They are forked, so that torch and scikit-learn are imported once."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=one_rank, args=(folder, r, world)) for r in range(world)]
    for rank in ranks:
        rank.start()
    failed = 0
    for rank in ranks:
        rank.join(120)
        if rank.exitcode != 0:
            failed += 1
            rank.kill()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
