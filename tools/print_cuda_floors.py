"""Prints, as markdown, how fast the kernels in CUDA C++ could be on an H200, by counting.

    python tools/print_cuda_floors.py

Bytes from memory and from L2, products, and instructions of the compiled loops, of CUDA C++ and of
Triton: the filters of nearest_centroid, and the linear loss with its gradients, for the shapes of
the GPU suite. What is taken of the GPU stands in GPU; the largest of a kernel's times is its floor.
Nothing is run or measured.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.pop("TRITON_INTERPRET", None)


class GPU:
    """An H200. L2: as measured by others on an H100; the rest as in docs/gpu.md."""

    memory, l2 = 4.3e12, 5.5e12  # bytes/s
    products = 790e12  # FLOP/s of float16
    multiprocessors, clock, schedulers = 132, 1.755e9, 4


@dataclass(frozen=True)
class Shape:
    """A call. bytes_of_row: read from memory. kind: how its name in cuda_kinds begins."""

    name: str
    rows: int
    dim: int
    centroids: int
    bytes_of_row: float
    kind: str


SHAPES = (
    Shape("a: 1M x 768 float32, K 100", 10**6, 768, 100, 3072, "a:"),
    Shape("b: 5102 uint8 images, K 100", 5102 * 196, 768, 100, 768, "b:"),
    Shape("c: 1M x 384 bfloat16, K 1000", 10**6, 384, 1000, 768, "c:"),
    Shape("d: 1M x 768 bfloat16, K 8192", 10**6, 768, 8192, 1536, "d:"),
    Shape("e: 12.8M x 48 bfloat16, K 512", 12_800_000, 48, 512, 96, "e:"),
)


def up(value: int, unit: int) -> int:
    """Units that hold ``value``."""
    return -(-value // unit)


def seconds_of_slots(slots: float, tiles: float) -> float:
    """``slots``: instructions of all warps of a multiprocessor for a tile of rows."""
    return slots * tiles / (GPU.multiprocessors * GPU.schedulers * GPU.clock)


def of_cuda(shape: Shape) -> tuple[float, float]:
    """Bytes from L2; seconds of instructions."""
    from clustermim_fast.ops import _nvrtc
    from tests.gpu import cuda_kinds, sass

    kind = next(k for name, k in cuda_kinds.SHIPPED.items() if name.startswith(shape.kind))
    loops = sass.loop_counts(
        sass.instructions(_nvrtc.compile_source(kind.kernel.source, kind.kernel.options)[0])
    )
    tiles, columns, steps = (
        up(shape.rows, 128), up(shape.centroids, 128), kind.depth // kind.step
    )  # fmt: skip
    row = max(loop["total"] for loop in loops if loop["depth"] == 1)
    converters = max(
        (loop for loop in loops if not loop["HGMMA"] and loop["G"] >= 4 and not loop["TMA"]
         and loop["total"] < 1000), key=lambda loop: loop["total"],
    )["total"]  # fmt: skip
    inner = [loop["total"] for loop in loops if loop["HGMMA"] and loop["HGMMA"] < 8]
    # Beyond 16 steps a loop of its own, of 64 values a turn.
    more = inner[0] * max(0, steps - 16) * kind.step // 64 if inner else 0
    if kind.one_tile:
        consumer: float = row + more
        slots: float = 8 * consumer + 8 * converters * kind.depth // 64
    else:
        pair = max(loop["total"] for loop in loops if loop["HGMMA"] and loop["depth"] == 2)
        consumer = columns * (pair / 2 + more) + row
        slots = 8 * consumer + 3 * converters * kind.depth // 64 * up(128, 12 * 2)
    bytes_l2 = tiles * columns * 128 * kind.depth * 2 / kind.cluster
    return bytes_l2 + shape.rows * shape.bytes_of_row, seconds_of_slots(slots, tiles)


def of_triton(shape: Shape) -> tuple[float, float, bool]:
    """The same, and whether two blocks share a multiprocessor."""
    import torch

    from tests.gpu import shipped, static

    if shape.kind == "b:":
        call: Any = partial(shipped._tokens, torch.uint8)
    else:
        dtype = torch.float32 if shape.kind == "a:" else torch.bfloat16
        call = partial(shipped._assign, shape.dim, shape.centroids, dtype, "euclidean")
    with static.offline(90) as rows:
        call()
    found = [r for r in rows if r.kernel == "_filter_kernel"]
    row = found[0] if found else _seen[shape.dim > 64]  # compiled for another shape before
    _seen[shape.dim > 64] = row
    size = row.constants
    block, width = size["BLOCK_N"], size["BLOCK_D"]
    tiles, columns, steps = (
        up(shape.rows, block), up(shape.centroids, 128), up(shape.dim, width)
    )  # fmt: skip
    depth = {d: [loop for loop in row.loops if loop["depth"] == d] for d in (1, 2, 3)}
    slots = depth[1][0]["total"]
    if size["ROUNDED"] == "":
        slots += depth[2][0]["total"] * steps
    elif size["ROUNDED"] == "registers":
        slots += depth[2][0]["total"] * columns
    else:
        rounding = next(loop["total"] for loop in depth[2] if loop["FFMA"])
        scores = next(loop["total"] for loop in depth[2] if not loop["FFMA"])
        slots += rounding * steps + columns * (scores + depth[3][0]["total"] * steps)
    both = block if size["ROUNDED"] == "scratch" else 0  # rows are read again with each tile
    bytes_l2 = tiles * columns * (128 + both) * steps * width * 2
    bytes_l2 += shape.rows * shape.bytes_of_row
    return bytes_l2, seconds_of_slots(slots * row.num_warps, tiles), row.ctas_per_sm > 1


_seen: dict[bool, Any] = {}


def print_linear() -> None:
    """602,112 of 802,816 tokens (and 4,096 prefixes), d 512, K 100, bfloat16, with gradients."""
    import torch

    from clustermim_fast.ops import _nvrtc
    from tests.gpu import cuda_kinds, sass, shipped, static

    counted, tokens, dim, classes = 602_112, 4096 * 197, 512, 100
    read, written = counted * dim * 2, tokens * dim * 2  # x, dX
    kind = next(k for name, k in cuda_kinds.LINEAR.items() if name.startswith("the GPU suite's"))
    kernel = kind.kernel
    cubin, _ = _nvrtc.compile_source(kernel.source, kernel.options)
    code = sass.instructions(cubin)
    loops = sass.loop_counts(code)
    # The widest products are those of dX: so many columns at a time.
    columns = max(int(c.op.split("x")[1]) for c in code if c.op.startswith("HGMMA"))
    tile = next(loop["total"] for loop in loops if loop["HGMMA"] and loop["depth"] == 1)
    part = next(loop["total"] for loop in loops if loop["HGMMA"] and loop["depth"] == 2)
    slots = 4 * (tile + part * kind.depth // columns)  # not those of fetching, a tenth of it
    tiles = up(counted, 64) * kind.cluster
    cuda = [
        (read + written) / GPU.memory,
        6 * counted * dim * kind.classes / GPU.products,
        seconds_of_slots(slots, tiles),
    ]
    with static.offline(90) as rows:
        shipped._linear(classes, dim, torch.bfloat16)
    times = []
    for name in ("linear_rows", "weight_parts"):
        row = next(r for r in rows if r.kernel == name)
        size, gradient = row.constants, 2 * counted * row.constants["KP"]
        once = max(loop["total"] for loop in row.loops if loop["depth"] == 1)
        inner = [loop["total"] for loop in row.loops if loop["depth"] == 2 and loop["HGMMA"]]
        turns = dim // size["WIDTH"]
        slots = once + turns * sum(inner) if inner else once * turns
        bytes_ = gradient + read + (written if inner else 0)
        products = (4 if inner else 2) * counted * dim * size["KP"]
        times.append([
            bytes_ / GPU.memory, products / GPU.products,
            seconds_of_slots(slots * row.num_warps, up(counted, size["ROWS"])),
        ])  # fmt: skip
    triton = [sum(of) for of in zip(*times, strict=True)]
    floors = max(cuda), sum(max(of) for of in times)  # Triton's kernels run one after the other
    print("\n| | memory | products | instructions | floor |\n|-|-|-|-|-|")
    for name, found, floor in (("CUDA C++", cuda, floors[0]), ("Triton", triton, floors[1])):
        cells = [f"{1e3 * t:.2f}" for t in (*found, floor)]
        print("| " + " | ".join([f"linear loss, {name}", *cells]) + " |")
    print(f"\nTriton / CUDA: {floors[1] / floors[0]:.2f}")


def main() -> int:
    """Print the table."""
    warnings.simplefilter("ignore")
    print("Milliseconds: memory and products, of both; L2 and instructions of each; its floor.\n")
    head = ["", "memory", "products", "CUDA: L2", "instructions", "floor", "Triton: L2",
            "instructions", "floor", "if nothing overlaps", "Triton / CUDA"]  # fmt: skip
    print("| " + " | ".join(head) + " |\n|" + "-|" * len(head))
    for shape in SHAPES:
        memory = shape.rows * shape.bytes_of_row / GPU.memory
        width = 64 * up(shape.dim, 64)
        products = 2 * shape.rows * width * 128 * up(shape.centroids, 128) / GPU.products
        l2, instructions = of_cuda(shape)
        cuda = max(memory, products, l2 / GPU.l2, instructions)
        t_l2, t_instructions, shared = of_triton(shape)
        triton = max(memory, products, t_l2 / GPU.l2, t_instructions)
        alone = triton if shared else max(memory, t_l2 / GPU.l2, products + t_instructions)
        times = [memory, products, l2 / GPU.l2, instructions, cuda, t_l2 / GPU.l2, t_instructions,
                 triton, alone]  # fmt: skip
        cells = [f"{1e3 * t:.2f}" for t in times] + [f"{triton / cuda:.2f}"]
        print("| " + " | ".join([shape.name, *cells]) + " |", flush=True)
    print_linear()
    return 0


if __name__ == "__main__":
    sys.exit(main())
