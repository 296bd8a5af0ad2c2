"""Images a second and core: building a cache, and training crops from it, beside the usual ways.

    python -m benchmarks.ops.bench_resized_crop --data FOLDER [--images 200] [--json FILE]

The folder has JPEG files in class folders. Building: Pillow's plain decode and resize beside ours
with each decoder that is installed, and beside writing the cache. Reading: torchvision's
ImageFolder + RandomResizedCrop (Pillow, bicubic) + flip, torchvision's tensor operations on cached
images, ours on each instruction set, and copying only. One thread each, by the process's own time.

    pytest benchmarks/ops/bench_resized_crop.py --benchmark-enable

times ours on made-up images.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms
from torchvision.transforms import v2

from benchmarks.harness import (
    interleave,
    limited_threads,
    machine,
    markdown_table,
    say,
    write_json,
)
from clustermim_fast import ops
from clustermim_fast.data import DataConfig, crop_params, decode_image, open_images
from clustermim_fast.data.cache import Settings, build_cache, open_sources
from clustermim_fast.data.cache.sources import Source
from clustermim_fast.image_files import JPEG_DECODERS

SHORT, SIDE = 256, 224
Call = Callable[[], Any]


def plain(content: bytes) -> np.ndarray:
    """What one writes by hand: Pillow's decode and bicubic resize."""
    import io

    image = Image.open(io.BytesIO(content)).convert("RGB")
    factor = SHORT / min(image.size)
    if factor < 1:
        size = [max(SHORT, round(side * factor)) for side in image.size]
        image = image.resize(tuple(size), Image.Resampling.BICUBIC)
    return np.array(image)


def build_methods(files: list[bytes], source: Source) -> dict[str, Call]:
    """Ways to 8-bit images with a short side of 256 pixels."""
    installed = [d for d in JPEG_DECODERS if d == "pillow" or importlib.util.find_spec(d)]

    def decode(decoder: str) -> Call:
        return lambda: [decode_image(content, SHORT, decoder) for content in files]

    def cache(decoder: str) -> Call:
        def make() -> None:
            folder = Path(tempfile.mkdtemp())
            settings = Settings("x", "", SHORT, decoder)
            build_cache(source, folder, settings, threads=1, progress=False)
            shutil.rmtree(folder)

        return make

    methods: dict[str, Call] = {
        "Pillow, decode only": lambda: [plain_decode(content) for content in files],
        "Pillow, decode and resize": lambda: [plain(content) for content in files],
    }
    for decoder in installed:
        methods[f"decode_image, {decoder}"] = decode(decoder)
        methods[f"clustermim cache, {decoder}"] = cache(decoder)
    return methods


def plain_decode(content: bytes) -> np.ndarray:
    import io

    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def read_methods(folder: Path, cache: Path, count: int) -> dict[str, Call]:
    """Ways to training crops uint8 [count, 3, 224, 224]."""
    draw = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIDE, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    theirs = datasets.ImageFolder(str(folder), draw)
    images = open_images(cache, size=SIDE, in_memory="no")
    ids = np.arange(count)
    out = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    tensors = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
        ]
    )
    config = DataConfig()

    def by_folder() -> None:
        for i in range(count):
            out[i] = theirs[i][0]

    def by_tensors() -> None:
        for i in range(count):
            out[i] = tensors(images.pixels(i))

    def ours(isa: str) -> Call:
        def crop() -> None:
            ops._backend.core().set_isa(name=isa)
            images.crops(0, 0, ids, config, out=out)
            ops._backend.core().set_isa(name="auto")

        return crop

    def copy() -> None:
        for i in range(count):
            out[i] = images.pixels(i)[:, :SIDE, :SIDE]

    paths = ops._backend.core().build_info()["isa_paths"]
    usable = [name for name in ("avx512", "avx2", "generic") if paths[name] == "usable"]
    return {
        "torchvision: ImageFolder, RandomResizedCrop of Pillow images": by_folder,
        "torchvision: RandomResizedCrop of tensors from the cache": by_tensors,
        **{f"ours from the cache, {isa}": ours(isa) for isa in usable},
        "a copy of a corner, no resize": copy,
    }


def table(methods: dict[str, Call], count: int, options: argparse.Namespace, base: str) -> str:
    timings = interleave(
        methods,
        rounds=options.rounds,
        min_seconds=0.02,
        max_seconds=options.max_seconds,
        clock=time.process_time,
        tell=say,
    )
    rates = {name: count / timing.minimum for name, timing in timings.items()}
    lines = [[n, f"{rate:,.0f}", f"{rate / rates[base]:.2f}"] for n, rate in rates.items()]
    return markdown_table(["one core", "images/s", "times"], lines)


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JPEG files in class folders")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-seconds", type=float, default=6.0, help="of one method")
    parser.add_argument("--parts", nargs="+", choices=("build", "read"), default=("build", "read"))
    parser.add_argument("--json", type=Path, help="also write the tables here")
    options = parser.parse_args()
    source = open_sources(options.data)[""]
    some = source.names[:: max(1, len(source.names) // options.images)][: options.images]
    with tempfile.TemporaryDirectory() as temporary, limited_threads(1):
        folder = Path(temporary) / "folder"
        for name in some:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(options.data / name, folder / name)
        source = open_sources(folder)[""]
        files = [source.read(i) for i in range(len(some))]
        tables = {}
        if "build" in options.parts:
            methods = build_methods(files, source)
            tables["build"] = table(methods, len(some), options, "Pillow, decode and resize")
        if "read" in options.parts:
            cache = Path(temporary) / "cache"
            settings = Settings("x", "", SHORT, "pillow")
            build_cache(source, cache, settings, threads=1, progress=False)
            methods = read_methods(folder, cache, len(some))
            tables["read"] = table(methods, len(some), options, next(iter(methods)))
    for text in tables.values():
        print(text, "\n")
    size = np.mean([len(content) for content in files]) / 1000
    print(machine(), f"{len(some)} images of {size:.0f} kB")
    if options.json:
        write_json(options.json, [tables])


@pytest.mark.parametrize("side", [32, 256])
def test_resized_crop_speed(benchmark, side):
    images = torch.randint(0, 256, (64, 3, side, side), dtype=torch.uint8)
    boxes = torch.from_numpy(crop_params(0, 0, np.arange(64), [side] * 64, [side] * 64).boxes)
    benchmark(ops.resized_crop, images, boxes, (side * 7 // 8, side * 7 // 8))


if __name__ == "__main__":
    main()
