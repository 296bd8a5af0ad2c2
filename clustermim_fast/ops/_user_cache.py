"""Files that a process leaves to the next in the user's cache folder: they save time, no more.

A home that cannot be read or written, or two processes at once, cost the work once more.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def file(name: str) -> Path:
    """Where ``name`` is kept; RuntimeError where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "clustermim_fast" / name


def read(name: str) -> bytes | None:
    """What was kept as ``name``; None where it is missing or out of reach."""
    try:
        return file(name).read_bytes()
    except (OSError, RuntimeError):
        return None


def write(name: str, content: bytes) -> None:
    """Keep ``content`` as ``name``, as a whole or, where nothing can be kept, not at all."""
    with contextlib.suppress(OSError, RuntimeError):
        target = file(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(content)
            Path(temporary).replace(target)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
