"""Tokenizer files of any kind back to tokenizers."""

from __future__ import annotations

from pathlib import Path

from clustermim_fast.tokenizers import storage
from clustermim_fast.tokenizers.pixel import PixelTokenizer

_KINDS = {PixelTokenizer.kind: PixelTokenizer}


def load_tokenizer(path: str | Path) -> PixelTokenizer:
    """Read what ``save`` wrote.

    Raises:
        FileNotFoundError, ValueError: no such file, not a tokenizer file, a newer format.
    """
    kind, tensors, settings = storage.read(path)
    if kind not in _KINDS:
        raise ValueError(f"load_tokenizer: {path} holds a tokenizer of unknown kind {kind!r}")
    try:
        return _KINDS[kind].from_storage(tensors, settings)
    except (KeyError, TypeError) as error:
        raise ValueError(f"load_tokenizer: {path} lacks or misnames a setting ({error})") from error
