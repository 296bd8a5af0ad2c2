"""Where a Triton back-end may run, and what its host side has to know of the device.

Imports no triton: ``import clustermim_fast.ops`` must not. The kernels stand in
``ops/<op>/triton_*.py``, which an op imports when it first runs on them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

# float64 atomics aside, what the kernels use (bfloat16 products, 128-bit asynchronous copies) came
# with Ampere.
LOWEST_CAPABILITY = 80


@dataclass(frozen=True)
class Device:
    """What tile sizes are chosen from.

    arch: "sm_90", or AMD's "gfx942". capability: 90, or 0 for AMD. shared_bytes: what one block may
    have at most.
    """

    arch: str
    capability: int
    multiprocessors: int
    shared_bytes: int


# What interpreted kernels pretend to run on: few programs, and tiles of the GPU that most have.
INTERPRETED = Device("sm_90", 90, 4, 232_448)
_stand_in: Device | None = None


def interpreted() -> bool:
    """Whether Triton interprets kernels on CPU tensors (TRITON_INTERPRET=1, set before import)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@contextmanager
def stand_in(device: Device) -> Iterator[None]:
    """Take CPU tensors for tensors on ``device``: to compile kernels without running them."""
    global _stand_in
    before, _stand_in = _stand_in, device
    try:
        yield
    finally:
        _stand_in = before


def unavailable_reason(device: torch.device) -> str | None:
    """None where Triton kernels can run on tensors of ``device``, else the reason why not."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if device.type == "cpu":
        if _stand_in is not None or interpreted():
            return None
        return "it needs CUDA tensors, got cpu (TRITON_INTERPRET=1 interprets the kernels, slowly)"
    if device.type != "cuda":
        return f"it needs CUDA tensors, got {device}"
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    broken = _import_error()
    if broken:
        return f"the package triton cannot be imported ({broken})"
    found = properties(device)
    if found.arch.startswith("sm_") and found.capability < LOWEST_CAPABILITY:
        return f"it needs compute capability 8.0 or newer, {device} is {found.arch}"
    return None


@functools.cache
def _import_error() -> str:
    """Why triton, which is installed, is of no use; "" if it is."""
    try:
        importlib.import_module("triton.language")
    except Exception as error:  # noqa: BLE001  whatever a broken installation raises
        return f"{type(error).__name__}: {error}"
    return ""


def properties(device: torch.device) -> Device:
    """The facts of ``device`` from which tile sizes are chosen."""
    if device.type == "cpu":
        return _stand_in or INTERPRETED
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch, shared = found.gcnArchName.split(":")[0], 65_536  # of CDNA and RDNA alike, at least
        return Device(arch, 0, found.multi_processor_count, shared)
    capability = 10 * found.major + found.minor
    shared = getattr(found, "shared_memory_per_block_optin", 101_376)
    return Device(f"sm_{capability}", capability, found.multi_processor_count, shared)


def all_registers(device: torch.device) -> dict[str, int]:
    """Launch option: left alone, ptxas gives some kernels fewer registers than there are, and
    they spill."""
    return {"maxnreg": 255} if properties(device).arch.startswith("sm_") else {}


def launching_on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
