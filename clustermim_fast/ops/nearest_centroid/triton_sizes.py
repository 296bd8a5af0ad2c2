"""Tile shapes of the assignment's Triton kernels, and what is assumed of tensor cores."""

from __future__ import annotations

from dataclasses import dataclass

from clustermim_fast.ops._triton import Device, interpreted
from clustermim_fast.ops.nearest_centroid.triton_images import is_packed
from clustermim_fast.ops.nearest_centroid.triton_rows import RowSource


@dataclass(frozen=True)
class Tile:
    """Rows, centroids and values of a row that a program holds at a time."""

    rows: int
    columns: int = 0
    values: int = 0
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Sizes:
    """Tiles of the kernels, and what goes with them.

    narrow: the filter keeps rounded rows in registers. filter_programs, programs: how many share
    out the rows, and the rows of a list. accumulation: alpha of docs/certificate.md's (13).
    """

    prepare: Tile
    filter: Tile
    candidates: Tile
    rescore: Tile
    sweep: Tile
    narrow: bool
    filter_programs: int
    programs: int
    accumulation: float


VALUE = Tile(rows=8, values=64) if not interpreted() else Tile(rows=1024, values=128)


# What is assumed of tensor cores, and why: docs/certificate.md, section 8.
_ACCUMULATION = {"sm_80": 1.5, "sm_86": 1.5, "sm_87": 1.5, "sm_89": 1.5, "sm_90": 0.75}


def tensor_cores_of(arch: str) -> float:
    """alpha of docs/certificate.md's (13)."""
    return _ACCUMULATION.get(arch, 4.0)


def accumulation_of(arch: str) -> float:
    """The same; interpreted, products are sums of float32."""
    return 1.01 if interpreted() else tensor_cores_of(arch)


def values_at_once(dim: int) -> int:
    """The widest tile that cuts ``dim`` with at most an eighth of it wasted."""
    for width in (128, 64, 32, 16):
        if -(-dim // width) * width <= max(dim * 9 / 8, 16):
            return width
    return min((16, 32, 64), key=lambda width: -(-dim // width) * width)


def choose(device: Device, rows: RowSource, K: int) -> Sizes:
    """The sizes for ``rows`` and ``K`` centroids on ``device``."""
    width = values_at_once(rows.dim)
    narrow = rows.dim <= 64
    if interpreted():
        # Large: the interpreter takes as long for a small block.
        columns = min(128, max(16, 1 << (K - 1).bit_length()))
        return Sizes(
            prepare=Tile(0, columns, width),
            filter=Tile(256, columns, width),
            candidates=Tile(128, columns, width),
            rescore=Tile(128, values=64),
            sweep=Tile(32, values=32, columns=256),
            narrow=narrow,
            filter_programs=2,
            programs=2,
            accumulation=accumulation_of(device.arch),
        )
    # A block of float64 values, or of pixels until they are values, takes twice the registers; of
    # channels side by side each value has a mean and a deviation of its own there. uint8 pixels on
    # a line are operands as they are.
    pixels, blackwell = rows.kind == "images", device.capability >= 100
    width = min(width, 32 if rows.wide or (pixels and not rows.line) else 64)
    columns = min(128, max(16, 1 << (K - 1).bit_length()))
    # Chosen from the compiled code (tests/gpu/test_nearest_centroid_static.py): the largest that
    # spill nothing on any target. Up to 128 centroids and for narrow rows memory or the work on
    # the scores bounds the time: small programs, of which two or three share a multiprocessor.
    # Else products do: twice the rows for one reading of the centroids from L2.
    tile = Tile(64, columns, width if narrow or rows.line else min(width, 32))
    if pixels and narrow:
        tile = Tile(64, min(columns, 64), width)
    elif narrow and K > 128 and blackwell:
        tile = Tile(64, 64, width)
    elif pixels and is_packed(rows.arguments[0]) and not rows.line:
        tile = Tile(64, columns, 16, warps=8)
    if K > 128 and not narrow:
        tile = Tile(128, 128, width, warps=8)
    warps = 8 if rows.wide or (narrow and blackwell) else 4
    return Sizes(
        prepare=Tile(0, 16, min(tile.values, 16 if rows.wide else 32)),
        filter=tile,
        candidates=(
            Tile(32, min(columns, 64), min(tile.values, 32 if rows.line else 16))
            if pixels
            else Tile(64, min(columns, 64), tile.values, warps=warps)
        ),
        rescore=Tile(4, values=32),
        sweep=Tile(8, 16, 16, warps=2),
        narrow=narrow,
        filter_programs=device.multiprocessors,
        programs=4 * device.multiprocessors,
        accumulation=accumulation_of(device.arch),
    )
