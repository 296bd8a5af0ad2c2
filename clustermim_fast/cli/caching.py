"""The command `cache`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from clustermim_fast.cli.settings import convert, read_settings, to_bool

__all__ = ["add_cache"]

KEYS: dict[str, Callable[[str], Any]] = {
    "data": str,
    "out": str,
    "size": int,
    "workers": int,
    "decoder": str,
    "restart": to_bool,
    "check": str,
}
HELP = """\
Decode images once, to files that training reads by mmap: every command takes OUT as data=. The same
command goes on where it was stopped.

  clustermim cache data=photos/ out=photos_cache
  clustermim cache data=imagenet/ out=imagenet256 size=256
  clustermim cache data=torchvision:CIFAR10:downloads out=cifar10_cache
  clustermim cache data=parquet_files/ out=cache        (as Hugging Face stores sets; needs pyarrow)
  clustermim cache data=shards/ out=cache               (WebDataset's .tar files)
  clustermim cache check=photos_cache                   (every byte against its checksum)

size=256 is the short side that larger images are reduced to (0: keep all pixels); workers= threads,
one for each core; decoder=auto|simplejpeg|torchcodec|pillow for plain JPEG files, the same pixels;
restart=yes throws away what OUT holds. Unreadable files are left out and listed in OUT/broken.txt.
"""


def add_cache(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """The command and its settings."""
    cache = add(commands, "cache", run_cache, "decode images once, for fast reading", HELP)
    cache.add_argument("settings", nargs="*", metavar="key=value")


def run_cache(parsed: argparse.Namespace) -> int:
    """clustermim cache."""
    settings = convert(read_settings(parsed.settings), KEYS, "cache")
    from clustermim_fast import api

    if "check" in settings:
        if len(settings) > 1:
            raise ValueError("check: takes no other settings")
        api.verify_cache(settings["check"])
        return 0
    for key in ("data", "out"):
        if not settings.get(key):
            raise ValueError(f"{key}: expected a value, got none; give {key}=")
    settings.pop("check", None)
    api.cache_images(**settings)
    return 0
