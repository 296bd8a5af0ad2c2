"""Images a second from files, from a cache, and by the network alone, beside torchvision's recipe.

    python -m benchmarks.end_to_end.bench_reading --data FOLDER [--case vit_small | cifar]
        [--images 1000] [--parts read train] [--json FILE]

FOLDER has class folders of image files. "read" only reads: uint8 training crops, in batches.
"train" puts one network (mae) behind each way to read, and behind a batch that never changes
("network alone"), and says which share of the time it waited for images. Ways to read:

    files       the driver's loader, decoding at every epoch (DataLoader with one worker)
    cache       the driver's loader from `clustermim cache`, mapped from disk (a thread)
    memory      the driver's loader from pixels in memory
    torchvision ImageFolder, RandomResizedCrop (bicubic), flip, PILToTensor; DataLoader, one worker

Rounds of all of them in turn. A round opens its loader and leaves its first batch out.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.end_to_end.bench_pretrain_step import CASES, LR, Case
from benchmarks.harness import limited_threads, machine, markdown_table, say, write_json
from clustermim_fast.data import IMAGENET_MEAN, IMAGENET_STD, DataConfig, open_images
from clustermim_fast.data.cache import Settings, build_cache, open_sources
from clustermim_fast.losses import LossConfig
from clustermim_fast.masking import MaskConfig, Masker
from clustermim_fast.models import create_model
from clustermim_fast.optim import OptimConfig, create_optimizer, set_learning_rate
from clustermim_fast.train.batches import Plan, TrainingBatches, choose_workers, make_loader
from clustermim_fast.train.step import forward_step

CPU = torch.device("cpu")
Open = Callable[[], Generator[Tensor, None, None]]


def some_of(folder: Path, count: int, out: Path) -> Path:
    """Links to `count` evenly chosen files of class folders, in `out`."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    for path in files[:: max(1, len(files) // count)][:count]:
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        (out / path.parent.name / path.name).symlink_to(path.resolve())
    return out


def ways_to_read(folder: Path, work: Path, case: Case) -> dict[str, Open]:
    """By name, what opens an endless loader of uint8 batches [B, 3, side, side]."""
    (source,) = open_sources(folder).values()
    build_cache(source, work, Settings("x", "", 2 * case.side, "pillow"), threads=1, progress=False)

    def driver(path: Path, in_memory: str) -> Open:
        images = open_images(path, size=case.side, in_memory=in_memory, split="all")
        plan = Plan.of(len(images), case.batch, 1, 1_000_000, seed=0)
        patch = case.model.patch_size or 16
        batches = TrainingBatches(images, DataConfig(), MaskConfig("random", 0.75), patch, seed=0)
        workers = choose_workers(None, images, CPU)

        def read() -> Generator[Tensor, None, None]:
            loader = make_loader(batches, plan, 0, workers=workers, pin_memory=False)
            for batch in loader:
                yield batch.images

        return read

    crop = transforms.RandomResizedCrop(
        case.side, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
    )
    recipe = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])

    def torchvision() -> Generator[Tensor, None, None]:
        data = datasets.ImageFolder(str(folder), recipe)
        loader = DataLoader(
            data, case.batch, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True
        )
        while True:
            for images, _ in loader:
                yield images

    return {
        "files": driver(folder, "no"),
        "cache": driver(work, "no"),
        "memory": driver(work, "yes"),
        "torchvision": torchvision,
    }


def one_batch(case: Case) -> Generator[Tensor, None, None]:
    """The same batch for ever."""
    images = torch.randint(0, 256, (case.batch, 3, case.side, case.side), dtype=torch.uint8)
    while True:
        yield images


def trainer(case: Case) -> Callable[[Tensor], None]:
    """One update of MAE's weights on a batch."""
    sizes = (case.side, case.side)
    model: Any = create_model("mae", case.model, sizes, None, seed=0).train()
    optimizer = create_optimizer(model, OptimConfig())
    set_learning_rate(optimizer, LR)
    masks = Masker(MaskConfig("random", 0.75), model.grid, model.patch_size)(
        0, 0, range(case.batch)
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def step(images: Tensor) -> None:
        forward_step(model, None, images, masks, mean, std, LossConfig()).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def one_round(open_: Open, batches: int, use: Callable[[Tensor], None]) -> tuple[float, float]:
    """(seconds of `batches` batches after the first, seconds of them spent waiting)."""
    waited = 0.0
    with contextlib.closing(open_()) as images:
        use(next(images))  # workers start, memory is touched
        start = time.perf_counter()
        for _ in range(batches):
            before = time.perf_counter()
            batch = next(images)
            waited += time.perf_counter() - before
            use(batch)
        return time.perf_counter() - start, waited


def measure(
    ways: dict[str, Open], batches: int, rounds: int, use: Callable[[Tensor], None]
) -> dict[str, tuple[float, float]]:
    """The fastest round of each way, ways in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 else reversed(ways):
            say(f"round {number + 1}: {name}")
            found[name].append(one_round(ways[name], batches, use))
    return {name: min(taken) for name, taken in found.items()}


def main() -> None:
    """Print a table of each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="image files in class folders")
    parser.add_argument("--case", choices=CASES, default="vit_small")
    parser.add_argument("--images", type=int, default=1000, help="of the folder, evenly chosen")
    parser.add_argument("--parts", nargs="+", choices=("read", "train"), default=("read", "train"))
    parser.add_argument("--read-batches", type=int, default=30)
    parser.add_argument("--train-batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the seconds here")
    options = parser.parse_args()
    case, results = CASES[options.case], []
    with tempfile.TemporaryDirectory() as work, limited_threads(options.threads):
        folder = some_of(options.data, options.images, Path(work) / "images")
        ways = ways_to_read(folder, Path(work) / "cache", case)
        for part in options.parts:
            if part == "read":
                count, use, opened = options.read_batches, lambda images: None, ways
            else:
                count, use = options.train_batches, trainer(case)
                opened = ways | {"network alone": lambda: one_batch(case)}
            rows = []
            for name, (seconds, waited) in measure(opened, count, options.rounds, use).items():
                rate, share = count * case.batch / seconds, 100 * waited / seconds
                rows.append([name, f"{rate:,.1f}", f"{share:.2f}" if part == "train" else ""])
                results.append({"part": part, "way": name, "rate": rate, "wait_percent": share})
            print(f"\n{part}, {options.case}, batch {case.batch}, {options.images} images\n")
            print(markdown_table(["images from", "images/s", "waited, %"], rows), flush=True)
    print(machine(), f"{options.threads} threads")
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
