"""Tokenizer files: one safetensors file, every setting in its metadata, nothing unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

FORMAT = "clustermim_fast.tokenizer"
FORMAT_VERSION = 1


def write(
    path: str | Path, kind: str, tensors: dict[str, torch.Tensor], settings: dict[str, Any]
) -> None:
    """Write the file whole or not at all (a temporary file beside it, then a rename)."""
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "kind": kind,
        "settings": json.dumps(settings),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        # Not save_file, whose files only their owner can read.
        temporary.write_bytes(save(plain, metadata=metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[str, dict[str, torch.Tensor], dict[str, Any]]:
    """(kind, tensors, settings) of a tokenizer file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a safetensors file, not a tokenizer, or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"load_tokenizer: no such file: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"load_tokenizer: {path} is not a whole safetensors file ({error}); copy or fit it "
            "again. One that a run fitted for itself may be deleted: the same command makes it"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"load_tokenizer: {path} is a safetensors file but not a tokenizer "
            f"(format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "for bare centroids use PixelTokenizer.from_centroids"
        )
    version = metadata.get("format_version", "")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise ValueError(
            f"load_tokenizer: {path} has format version {version}, this package reads up to "
            f"{FORMAT_VERSION}; update clustermim_fast"
        )
    try:
        settings = json.loads(metadata["settings"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"load_tokenizer: {path} has unreadable settings ({error!r})") from error
    return metadata.get("kind", ""), tensors, settings
