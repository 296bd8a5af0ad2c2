"""What the benchmarks share: the timing of ``clustermim_fast.bench``, tables, JSON, the commit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clustermim_fast.bench import timing
from clustermim_fast.bench.timing import Timing, interleave, limited_threads

__all__ = [
    "Timing", "interleave", "limited_threads", "machine", "markdown_table", "say", "write_json",
]  # fmt: skip

REPOSITORY = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """What a number depends on: processor, cores, load, versions, commit."""
    return timing.machine() | {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "clustermim_fast", "csrc")),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def say(text: str) -> None:
    """Progress goes to stderr with its time, tables to stdout."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "-|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_json(path: str | Path, results: Sequence[Any]) -> None:
    """``results`` (dataclasses or dicts) and the machine as one JSON file."""
    plain = [r if isinstance(r, dict) else asdict(r) for r in results]
    Path(path).write_text(json.dumps({"machine": machine(), "results": plain}, indent=1) + "\n")
