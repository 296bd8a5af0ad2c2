"""What stands beside the shards of a finished cache, from the rows of their makers."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustermim_fast.data.cache import format as files
from clustermim_fast.data.cache.format import Unread
from clustermim_fast.data.cache.sources import Source
from clustermim_fast.data.decode import UInt8Array
from clustermim_fast.image_files import CACHE_INDEX

__all__ = ["exact_sums", "write_index"]

Int64Array = npt.NDArray[np.int64]
_EXACT = 256  # float32 holds sums of as many squares of bytes: 256 * 255^2 < 2^24


def exact_sums(rows: UInt8Array) -> tuple[Int64Array, Int64Array]:
    """Sums of bytes [R, N], and of their squares, int64 [R]; a fifth of the time of float64."""
    whole = rows.shape[1] // _EXACT * _EXACT
    parts = rows[:, :whole].astype(np.float32).reshape(len(rows), -1, _EXACT)
    rest = rows[:, whole:].astype(np.int64)
    sums = np.einsum("rbn->rb", parts).astype(np.int64).sum(axis=1) + rest.sum(axis=1)
    squares = np.einsum("rbn,rbn->rb", parts, parts).astype(np.int64).sum(axis=1)
    return sums, squares + (rest * rest).sum(axis=1)


def write_index(
    folder: Path, source: Source, begun: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """All files but the shards; cache.json comes last, and a cache without it is unfinished."""
    labels = source.labels
    broken = [
        Unread(entry, -1 if labels is None else int(labels[entry]), source.names[entry], w)
        for row in rows
        for entry, w in row["broken"]
    ]
    shapes = np.array([s for row in rows for s in row["shapes"]], dtype=np.int32).reshape(-1, 2)
    if len(shapes) == 0:
        raise ValueError(f"data: none of the {len(source.names)} images can be read")
    kept = np.ones(len(source.names), dtype=bool)
    kept[[item.entry for item in broken]] = False
    names = [name for name, keep in zip(source.names, kept, strict=True) if keep]
    contents = {
        "shapes.npy": _npy(shapes),
        "names.txt": "".join(" ".join(n.split()) + "\n" for n in names).encode(),
    }
    if labels is not None:
        contents["labels.npy"] = _npy(labels[kept])
    if broken:
        contents["broken.txt"] = files.broken_lines(broken).encode()
    mean, std = _moments(rows, int(shapes.astype(np.int64).prod(axis=1).sum()))
    facts = {
        **begun,
        "images": len(shapes),
        "bytes": sum(row["bytes"] for row in rows),
        "mean": mean,
        "std": std,
        "classes": None if labels is None else source.class_names,
        "shards": [len(row["shapes"]) for row in rows],
    }
    contents[CACHE_INDEX] = (json.dumps(facts, indent=1) + "\n").encode()
    sums = {files.shard_name(row["shard"]): row["sha256"] for row in rows}
    sums |= {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    files.write_sums(folder, sums)
    for name, content in contents.items():
        files.write_file(folder / name, content)


def _npy(values: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _moments(rows: list[dict[str, Any]], pixels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel in [0, 1] pixel units, of exact sums; six digits."""
    sums = [sum(row["sums"][c] for row in rows) for c in range(3)]
    squares = [sum(row["squares"][c] for row in rows) for c in range(3)]
    mean = [total / pixels / 255 for total in sums]
    # In integers until the last division: the difference of two large numbers.
    variance = [
        (square * pixels - total * total) / pixels**2 / 255**2
        for square, total in zip(squares, sums, strict=True)
    ]
    # A set of one colour has no spread; 1/255 keeps the division by std harmless.
    std = [max(value**0.5, 1 / 255) for value in variance]
    return [round(value, 6) for value in mean], [round(value, 6) for value in std]
