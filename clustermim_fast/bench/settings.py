"""The settings that both kinds of `clustermim bench` share, and what they do with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from clustermim_fast.bench.inputs import (
    read_or_make,
    require_choice,
    require_count,
    require_writable,
)
from clustermim_fast.bench.timing import limited_threads

INSTALL = 'pip install "clustermim_fast[bench]"'
Tell = Callable[[str], None]


class Named(Protocol):
    """A peer: its name in tables and on a command line, and what it lacks."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    def missing(self) -> str | None: ...


P = TypeVar("P", bound=Named)


def to_stderr(line: str) -> None:
    """What runs now, for a person who waits: the page alone goes to stdout."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Settings:
    """What to measure, and how; ValueError, naming the remedy, for what makes no sense.

    n, d, k: rows, width, centroids; of made-up rows, or the first ``n`` rows of ``file`` and ``k``
        centroids found on it. Defaults 20,000, 768, 1000.
    dtype: "float32", "float64", "float16" or "bfloat16"; "": the file's own, else float32. The
        peers are given 16-bit values as float32. (k-means: float32 only.)
    file: a .npy array [N, D].
    centroids: a .npy array [K, D].
    peers: "all", "none", or keys with commas.
    rounds: the minimum of so many is shown; a slow method gets fewer. None: some, and more of a
        short method.
    threads: for everyone; None: torch's number.
    json: also write what was measured there.
    """

    n: int | None = None
    d: int | None = None
    k: int | None = None
    dtype: str = ""
    file: str = ""
    centroids: str = ""
    peers: str = "all"
    rounds: int | None = None
    threads: int | None = None
    seed: int = 0
    json: str = ""

    def __post_init__(self) -> None:
        require_count("rounds", self.rounds)
        require_count("threads", self.threads)
        require_writable("json", self.json)

    @classmethod
    def keys(cls) -> dict[str, Callable[[str], Any]]:
        """What each setting on the command line is read as."""
        return {field.name: str if field.type == "str" else int for field in fields(cls)}

    def choose(
        self, peers: Sequence[P], more: Sequence[str] = ()
    ) -> tuple[list[P], Iterable[str], list[str]]:
        """The wanted peers that are installed, all wanted keys, and lines on missing peers."""
        keys = [*(peer.key for peer in peers), *more]
        whole: dict[str, list[str]] = {"all": keys, "none": []}
        names = whole.get(self.peers, self.peers.split(","))
        for name in names:
            require_choice("peers", name, keys if "," in self.peers else (*keys, *whole))
        chosen = [peer for peer in peers if peer.key in names]
        lines = [
            f"not installed: {p.name} needs {p.missing()}: {INSTALL}" for p in chosen if p.missing()
        ]
        return [peer for peer in chosen if not peer.missing()], names, lines

    def read(self, dtype: str) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Rows, centroids, and where they come from in words."""
        return read_or_make(self.n, self.d, self.k, dtype, self.file, self.centroids, self.seed)

    def limited(self) -> AbstractContextManager[None]:
        """The same number of threads for everyone."""
        return limited_threads(self.threads or torch.get_num_threads())

    def publish(self, result: dict[str, Any], page: str, say: Tell) -> dict[str, Any]:
        """Print the page and write the JSON."""
        say(page)
        if self.json:
            text = json.dumps(result, indent=1) + "\n"
            Path(self.json).write_text(text, encoding="utf-8")
        return result
