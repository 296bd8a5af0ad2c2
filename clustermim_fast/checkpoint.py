"""Checkpoints: plain dicts of tensors and numbers; a crash leaves the old file or the new one."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
_FULL = "the disk is full, or a limit is reached: free some space"
_CLOSED = "nothing may be written there: give another out=, or the right to write"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _CLOSED),
}


class WriteError(OSError):
    """A file could not be written; the message says what to do, and what is whole."""


@contextmanager
def naming_the_remedy(target: str | Path) -> Iterator[None]:
    """Turn what a full or closed disk raises on the way to ``target`` into a WriteError.

    torch reports a failed write as a RuntimeError about positions, with the reason as its context.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or isinstance(cause, WriteError):
            raise
        if cause.errno not in _REMEDIES:
            raise
        raise WriteError(
            cause.errno,
            f"{cause.filename or target} cannot be written ({os.strerror(cause.errno)}): "
            f"{_REMEDIES[cause.errno]}. What was whole before is whole; the same command goes on "
            "from the last checkpoint",
        ) from error


def require_writable(folder: str | Path) -> None:
    """Refuse a folder, there or to be made, that may not be written: before hours of work."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"out: {place} is a file, and {folder} would lie below it; give another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise WriteError(errno.EACCES, f"out: {folder}: {_CLOSED}")


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write `state` (nested dicts and lists of tensors, numbers and strings) to `path`, atomically.
    Tensors are contiguous in the file, whatever their memory format.

    The file appears under its name only when it is complete and on the disk: temporary file,
    fsync, rename, fsync of the folder.

    Raises:
        WriteError: the disk is full or closed; what stood under the name is as it was.
        TypeError: `state` holds an object that `torch.load(weights_only=True)` would refuse.
    """
    target = Path(path)
    content = {"format": FORMAT, **_plain(state, "state")}
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with naming_the_remedy(target), open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(target.parent)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write a small text file with the same promise as `save_checkpoint`."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(target.parent)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, never unpickling anything but tensors and plain containers.

    Raises:
        ValueError: no such file, not a checkpoint of ours, or damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"checkpoint: no such file: {file}")
    if not zipfile.is_zipfile(file):  # torch would try an older format, made of pickles
        raise ValueError(f"checkpoint: {file} cannot be read: it is damaged or of another kind")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"checkpoint: {file} cannot be read: {error}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"checkpoint: {file} was not written by clustermim_fast")
    if state["format"] != FORMAT:
        raise ValueError(
            f"checkpoint: {file} has format {state['format']}, this version reads {FORMAT}"
        )
    return state


def keep_newest(folder: str | Path, pattern: str, count: int) -> None:
    """Delete all but the `count` files matching `pattern` that come last.

    Shorter names come first, as zero-padded numbers outgrow their padding: epoch_10000 is newer
    than epoch_9999.
    """
    files = sorted(Path(folder).glob(pattern), key=lambda path: (len(path.name), path.name))
    for old in files[: max(0, len(files) - count)]:
        old.unlink()


def remove_partial(folder: str | Path) -> None:
    """Delete what a killed process was writing; a live one would fail to rename its file."""
    for partial in Path(folder).glob(".*.partial"):
        partial.unlink(missing_ok=True)


def _plain(value: Any, where: str) -> Any:
    """`value` as it is stored, or TypeError."""
    if isinstance(value, Tensor):
        return value.contiguous()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    raise TypeError(
        f"checkpoint: {where} is a {type(value).__name__}; only tensors, numbers, strings, "
        "lists, tuples and dicts may be stored"
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
