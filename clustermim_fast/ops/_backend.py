"""Which back-end an op runs on: chosen by device, forced by argument, context or environment.

A named back-end that cannot run is an error that says why; nothing falls back silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from clustermim_fast.ops import _checks, _choice, _cuda, _triton

NAMES = ("reference", "cpu", "triton", "cuda")
ENVIRONMENT_VARIABLE = "CLUSTERMIM_BACKEND"

# csrc/core/dtype.h lists the same codes.
DTYPE_CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.uint8: 4,
}

_core: ModuleType | None
_core_error: str | None
try:
    from clustermim_fast import _core
except ImportError as error:
    _core, _core_error = None, str(error)
else:
    _core_error = None


def share_threads() -> bool:
    """Let the kernels run on torch's OpenMP threads; False where it has none.

    Threads of our own would fight them for the cores: after each of its ops torch's keep spinning
    for milliseconds.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return bool(core().share_threads(library=str(library)))


def _name_from_environment() -> str | None:
    name = os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is not None and name not in NAMES:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


_forced: str | None = _name_from_environment()


def core() -> Any:
    """The compiled module ``clustermim_fast._core``, or an error that says how to get it."""
    if _core is None:
        raise RuntimeError(core_unavailable_reason())
    return _core


if _core is not None:
    share_threads()


def core_unavailable_reason() -> str | None:
    """Why the compiled core cannot be imported, and what to do; None where it can."""
    if _core is not None:
        return None
    package = Path(__file__).parents[1]
    if (package.parent / "CMakeLists.txt").is_file():
        # Python puts the folder it starts in before site-packages.
        remedy = (
            f"{package} is a checkout's and hides an installed package: start Python in another "
            "folder, or run `make core` here"
        )
    else:
        remedy = "reinstall with `pip install .`"
    return f"the compiled core could not be imported ({_core_error}); {remedy}"


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one back-end for every op called inside the block (``None``: choose by device).

    An op call's own ``backend=`` argument still wins. The setting is per process, not per thread.
    """
    global _forced
    if name is not None and name not in NAMES:
        raise ValueError(f"use_backend: name must be one of {', '.join(NAMES)}, got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def availability(device: torch.device, implemented: tuple[str, ...]) -> dict[str, str | None]:
    """For each back-end name, ``None`` if it can run on ``device``, else the reason why not.

    ``implemented`` lists the back-ends that the op has in this release.
    """
    return {name: _unavailable_reason(name, device, implemented) for name in NAMES}


def _unavailable_reason(
    name: str, device: torch.device, implemented: tuple[str, ...]
) -> str | None:
    if name not in implemented:
        return "this release has no such back-end for this op"
    if name == "reference":
        return None
    if name == "cpu":
        if device.type == "cpu":
            return core_unavailable_reason()
        return f"it needs CPU tensors, got {device}"
    if name == "triton":
        return _triton.unavailable_reason(device)
    return _cuda.unavailable_reason(device)


def named(backend: str | None) -> str | None:
    """The back-end that a call's ``backend`` names, or the forced one; None: chosen by device."""
    return backend if backend is not None else _forced


def resolve(
    op: str, backend: str | None, device: torch.device, implemented: tuple[str, ...]
) -> str:
    """The back-end to run ``op`` on: ``backend``, else the forced one, else the device's fastest.

    Raises ValueError for an unknown name and RuntimeError for one that cannot run here.
    """
    name = named(backend)
    if name is not None and name not in NAMES:
        raise ValueError(f"{op}: backend must be one of {', '.join(NAMES)} or None, got {name!r}")
    if device.type == "cuda":
        return _on_gpu(op, name, str(device), implemented, torch.compiler.is_compiling())
    if device.type not in ("cpu", "meta"):
        raise RuntimeError(
            f"{op}: no back-end runs on {device.type} tensors; "
            "move them to the CPU or a CUDA device"
        )
    if name is None:
        name = "cpu" if device.type == "cpu" and "cpu" in implemented else "reference"
    return _require(op, name, device, implemented)


# What a back-end does not take of a call: the argument, what it has to be, what it is.
Refusal = tuple[str, str, object]


def resolve_call(
    op: str,
    backend: str | None,
    device: torch.device,
    implemented: tuple[str, ...],
    refused_by_cuda: Callable[[], Refusal | None],
) -> str:
    """:func:`resolve` for a call that CUDA C++ may not take: then it is left to the next back-end,
    unless CUDA C++ was named."""
    name = resolve(op, backend, device, implemented)
    problem = refused_by_cuda() if name == "cuda" else None
    if problem is None:
        return name
    if named(backend) is not None:
        raise _checks.bad_value(op, *problem, 'pass backend="triton"')
    return resolve(op, None, device, tuple(other for other in implemented if other != "cuda"))


def _require(op: str, name: str, device: torch.device, implemented: tuple[str, ...]) -> str:
    """``name`` if it can run on ``device``, else an error that says what can."""
    reason = _unavailable_reason(name, device, implemented)
    if reason is not None:
        reasons = availability(device, implemented)
        usable = [n for n, why in reasons.items() if why is None]
        raise RuntimeError(
            f"{op}: backend {name!r} is not available: {reason} "
            f"(available here: {', '.join(usable)})"
        )
    return name


# What is settled for this process: looking for packages and devices takes longer than a launch.
_settled: dict[tuple[str, str | None, str, tuple[str, ...]], str] = {}


def _on_gpu(
    op: str, name: str | None, device: str, implemented: tuple[str, ...], compiling: bool
) -> str:
    key = (op, name, device, implemented)
    if key in _settled:
        return _settled[key]
    found = torch.device(device)
    if name is not None:
        _require(op, name, found, implemented)
        problem = _choice.agreement(op, device, compiling) if name == "cuda" else ""
        if problem == _choice.NOT_CHECKED:
            return name
        if problem:
            raise RuntimeError(f"{op}: backend {name!r} is not available on {device}: {problem}")
        _settled[key] = name
        return name
    usable = [n for n in ("cuda", "triton") if not _unavailable_reason(n, found, implemented)]
    chosen = _choice.fastest(op, device, tuple(usable), compiling)
    if chosen != "reference":  # that may be until a check passes
        _settled[key] = chosen
    return chosen


# torch.compiler.assume_constant_result without importing torch's compiler: the compiler calls it
# itself instead of tracing it.
_on_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]
