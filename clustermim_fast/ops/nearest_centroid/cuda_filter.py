"""The filter on Hopper's own instructions: ``csrc/nearest_centroid/hopper_filter.h``.

It does what ``triton_filter`` does, and hands on to the same tiers (docs/cuda.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import torch

from clustermim_fast.ops import _cuda, _triton
from clustermim_fast.ops.nearest_centroid.triton_lists import Lists
from clustermim_fast.ops.nearest_centroid.triton_prepare import Codebook
from clustermim_fast.ops.nearest_centroid.triton_rows import RowSource
from clustermim_fast.ops.nearest_centroid.triton_sizes import Sizes, Tile

ROWS = COLUMNS = 128  # of a tile
_VALUES = {torch.float32: "Float32", torch.float16: "Float16", torch.bfloat16: "Bfloat16"}
_MOST_BYTES = 232_448  # of shared memory, of a block


@dataclass(frozen=True)
class Kind:
    """What a kernel is compiled for: the names of ``Filter`` in hopper_filter.h."""

    source: str
    depth: int
    cluster: int
    euclidean: bool
    one_tile: bool

    @property
    def step(self) -> int:
        """Values of a stage of centroids."""
        return 32 if self.depth > 640 or self.depth == 256 else 64

    @property
    def kernel(self) -> _cuda.Kernel:
        threads, size = 640 if self.one_tile else 384, self._bytes()
        defines = (
            ("CMIM_SOURCE", self.source),
            ("CMIM_DEPTH", self.depth),
            ("CMIM_CLUSTER", self.cluster),
            ("CMIM_EUCLIDEAN", int(self.euclidean)),
            ("CMIM_ONE_TILE", int(self.one_tile)),
            # The source asserts that it says the same.
            ("CMIM_THREADS", threads),
            ("CMIM_BYTES", size),
        )
        return _cuda.Kernel(
            "nearest_centroid/hopper_filter.cu", "filter_rows", defines, threads, self.cluster, size
        )

    def _bytes(self) -> int:
        """Of shared memory, with as many stages of centroids as fit."""
        steps, chunks = self.depth // self.step, self.depth // 64

        def of(stages: int) -> int:
            biases = -(-stages // steps) + 2
            sums = ROWS * 8
            barriers = 8 * (2 * stages + 2 * chunks + 1)
            return chunks * 16_384 + stages * 256 * self.step + biases * 512 + sums + barriers

        most = range(512 // self.step, 0, -1)
        return next(of(stages) for stages in most if of(stages) <= _MOST_BYTES)


def sizes_for(sizes: Sizes, dim: int) -> Sizes:
    """The same with this filter's tiles, for rows of ``dim`` values."""
    prepare = replace(sizes.prepare, values=min(sizes.prepare.values, 64))
    # Steps of 448 values would spill.
    return replace(
        sizes, prepare=prepare, filter=Tile(ROWS, COLUMNS, 128 if 384 < dim <= 448 else 64)
    )


def kind_of(rows: RowSource, book: Codebook) -> Kind:
    """The kernel for these rows and centroids."""
    columns, depth = book.packed.shape
    return Kind(
        source=_source(rows, book.metric == "euclidean"),
        depth=depth,
        cluster=2 if rows.num_rows > ROWS else 1,
        euclidean=book.metric == "euclidean",
        one_tile=columns == COLUMNS,
    )


def _source(rows: RowSource, framed: bool) -> str:
    tensor = rows.arguments[0]
    if rows.kind == "matrix":
        _, row_stride, column_stride = rows.arguments
        starts = (tensor.data_ptr(), row_stride * tensor.element_size())
        aligned = column_stride == 1 and rows.dim % 8 == 0 and not any(at % 16 for at in starts)
        return f"MatrixRows<{_VALUES[tensor.dtype]},{_cpp(aligned)},{_cpp(framed)}>"
    _, *strides, patches, across = rows.arguments[:7]
    patch, channels, packed = (of.value for of in rows.arguments[7:10])
    side_by_side = patch * channels if packed else patch if strides[3] == 1 else 1
    places = (tensor.data_ptr(), strides[0], strides[2], 0 if packed else strides[1])
    aligned = side_by_side % 8 == 0 and not any(at % 8 for at in places)
    numbers = f"{patch},{channels},{across},{patches}"
    return f"ImageRows<{_cpp(packed)},{_cpp(aligned)},{numbers}>"


def _cpp(value: bool) -> str:
    return "true" if value else "false"


def pack_arguments(
    rows: RowSource, book: Codebook, sizes: Sizes, lists: Lists, ids: torch.Tensor
) -> bytes:
    """``FilterArguments`` of hopper_arguments.h."""
    columns, depth = book.packed.shape
    unit = 2.0**-24
    product = sizes.accumulation * (depth + 16) * unit
    # Of a row's squares: eight values, eight threads, then chunk by chunk.
    additions = 8 + 3 + depth // 64
    summed = 2.0**-10 + 1.2 * product if book.line else 2.02 * (additions + 16) * unit
    matrix = rows.arguments[1:3] if rows.kind == "matrix" else (0, 0)
    images = rows.arguments[1:5] if rows.kind == "images" else (0, 0, 0, 0)
    tensors = (
        book.bias, book.near, book.frame, book.scale, book.facts,
        ids, lists.counters, lists.open_rows, lists.open_limits,
    )  # fmt: skip
    return struct.pack(
        "<Q6q9Q3i4f4x",
        rows.arguments[0].data_ptr(), *matrix, *images, *(t.data_ptr() for t in tensors),
        rows.num_rows, rows.dim, columns // COLUMNS,
        product + 2 * unit, 1 + summed, rows.dim**0.5 * 2.0**-60,
        book.line.rho_square if book.line else 0.0,
    )  # fmt: skip


def launch(kind: Kind, blocks: int, arguments: bytes, packed: torch.Tensor) -> None:
    """Run it; ``packed``: the centroids."""
    box = (COLUMNS // kind.cluster, kind.step)
    centroids = _cuda.tensor_map(packed, box, swizzle=2 * kind.step)
    kind.kernel.launch(packed.device, blocks, (arguments, centroids))


def filter_rows(
    rows: RowSource, book: Codebook, sizes: Sizes, lists: Lists, ids: torch.Tensor
) -> None:
    """Stores the ids that the filter decides, lists the other rows."""
    kind = kind_of(rows, book)
    tiles = -(-rows.num_rows // ROWS)
    most = _triton.properties(ids.device).multiprocessors
    blocks = -(-min(tiles, most) // kind.cluster) * kind.cluster
    launch(kind, blocks, pack_arguments(rows, book, sizes, lists, ids), book.packed)
