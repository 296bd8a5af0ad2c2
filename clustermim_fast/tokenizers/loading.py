"""Tokenizer files of any kind back to tokenizers."""

from __future__ import annotations

from pathlib import Path

from clustermim_fast.tokenizers import storage
from clustermim_fast.tokenizers.base import Tokenizer
from clustermim_fast.tokenizers.pixel import PixelTokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read what ``save`` wrote.

    Raises:
        FileNotFoundError, ValueError: no such file, not a tokenizer file, a newer format.
    """
    kind, tensors, settings = storage.read(path)
    try:
        if kind == PixelTokenizer.kind:
            return PixelTokenizer.from_storage(tensors, settings)
        if kind == "feature":  # needs timm; pixels do not
            from clustermim_fast.tokenizers.feature import FeatureTokenizer

            return FeatureTokenizer.from_storage(tensors, settings)
    except (KeyError, TypeError) as error:
        raise ValueError(f"load_tokenizer: {path} lacks or misnames a setting ({error})") from error
    raise ValueError(f"load_tokenizer: {path} holds a tokenizer of unknown kind {kind!r}")
