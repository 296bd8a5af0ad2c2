"""Images inside larger files: Parquet as Hugging Face writes it, WebDataset's tar files."""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustermim_fast.image_files import EXTENSIONS

__all__ = ["open_parquet", "open_tars"]

Labels = npt.NDArray[np.int64] | None
Opened = tuple[list[str], Callable[[int], Any], Labels, list[str] | None]


def open_parquet(files: list[Path]) -> Opened:
    """Names, reader, labels and class names of the first image column.

    An image is a binary value or a struct with a field "bytes"; a label an integer column "label"
    or "labels". A thread keeps the row group that it read last.
    """
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ValueError(
            'data: reading Parquet files needs pyarrow; pip install "clustermim_fast[data]"'
        ) from None
    schema = parquet.read_schema(files[0])
    image = next((f.name for f in schema if _holds_images(f.type)), None)
    if image is None:
        raise ValueError(
            f"data: {files[0]} has no column of images (binary, or a struct with bytes); it has "
            f"{', '.join(schema.names)}"
        )
    label = next((n for n in ("label", "labels") if n in schema.names), None)
    places, labels = [], []
    for file in files:
        with parquet.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                rows = opened.metadata.row_group(group).num_rows
                places += [(file, group, row) for row in range(rows)]
            if label is not None:
                labels.append(opened.read([label]).column(0).to_numpy())
    kept = threading.local()

    def read(index: int) -> bytes:
        file, group, row = places[index]
        if getattr(kept, "key", None) != (file, group):
            with parquet.ParquetFile(file) as opened:
                kept.column = opened.read_row_group(group, columns=[image]).column(0)
            kept.key = (file, group)
        value = kept.column[row].as_py()
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None:
            raise FileNotFoundError(2, "the row holds a path and no bytes")
        return bytes(content)

    names = [f"{file.name}:{group}:{row}" for file, group, row in places]
    if not labels:
        return names, read, None, None
    numbers = np.concatenate(labels).astype(np.int64)
    return names, read, numbers, _class_names(schema, label, numbers)


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: Any, label: str | None, numbers: npt.NDArray[np.int64]) -> list[str]:
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = about.get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names") or [str(number) for number in range(int(numbers.max()) + 1)]
    return [str(name) for name in names]


def open_tars(files: list[Path]) -> Opened:
    """Names, reader, labels and class names: members with an image's ending, and KEY.cls beside.

    Only headers are read here. A compressed tar has no places to go to and is refused.
    """
    places: list[tuple[Path, int, int]] = []
    names: list[str] = []
    keys: list[str] = []
    classes: dict[str, int] = {}
    for file in files:
        try:
            with tarfile.open(file, "r:") as opened:
                for member in opened:
                    key, dot, ending = member.name.partition(".")
                    if not member.isfile():
                        continue
                    if f".{ending.rpartition('.')[2].lower()}" in EXTENSIONS:
                        places.append((file, member.offset_data, member.size))
                        names.append(f"{file.name}:{member.name}")
                        keys.append(f"{file}:{key}")
                    elif dot and ending == "cls":
                        content = opened.extractfile(member)
                        assert content is not None
                        classes[f"{file}:{key}"] = int(content.read())
        except (tarfile.ReadError, ValueError) as error:
            raise ValueError(
                f"data: {file} cannot be read as a plain tar file ({error}); unpack it, or "
                "decompress it to .tar"
            ) from error
    if not places:
        raise ValueError(f"data: {files[0]} holds no images ({', '.join(sorted(EXTENSIONS))})")

    def read(index: int) -> bytes:
        file, start, size = places[index]
        with open(file, "rb") as opened:
            opened.seek(start)
            return opened.read(size)

    if not classes:
        return names, read, None, None
    lost = [name for name, key in zip(names, keys, strict=True) if key not in classes]
    if lost:
        raise ValueError(f"data: {len(lost)} images have no .cls member, for instance {lost[0]}")
    labels = np.array([classes[key] for key in keys], dtype=np.int64)
    return names, read, labels, [str(number) for number in range(int(labels.max()) + 1)]
