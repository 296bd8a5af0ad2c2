"""Peak memory of a call above what is held before it (Linux: VmHWM, which can be reset)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most resident memory during ``call`` beyond what was resident before."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed must not serve this one
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line for line in lines if line.startswith(f"{name}:")).split()[1]
    return int(kib) * 1024
