"""Which GPU back-end an op takes when none is named: one with a recorded correct run, or one that
passes a check on this very device.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from clustermim_fast._version import __version__
from clustermim_fast.ops import _nvrtc, _triton, _user_cache

# op -> architecture -> back-ends that a GPU of it has run without a wrong result, fastest first.
# benchmarks/gpu_suite prints these lines; its results stand in benchmarks/results.
RECORDED_RUNS: dict[str, dict[str, tuple[str, ...]]] = {}

PASSED = "checked_kernels.json"  # in the user's cache

_log = logging.getLogger("clustermim_fast")
_said: set[str] = set()
# (op, device, back-end) -> "" where it agreed with the reference, else what went wrong
_verdicts: dict[tuple[str, str, str], str] = {}
_this_thread = threading.local()  # .checking: it runs a check
TITLES = {"triton": "Triton", "cuda": "CUDA"}
NOT_CHECKED = "its kernels are not checked on this device yet (call ops.warmup())"
NO_MEMORY = "no memory was left to check its kernels"
# The other ops' plain torch reads from the device, which a CUDA graph cannot capture.
CAPTURED_AS_PLAIN_TORCH = {"masked_cross_entropy", "masked_linear_cross_entropy"}


def fastest(op: str, device: str, usable: tuple[str, ...], compiling: bool) -> str:
    """The back-end for ``op`` on the GPU ``device``, of those that can run there.

    Without a recorded run on this architecture Triton is held against the reference first: once per
    device and version, and never while torch compiles or a CUDA graph is captured. The reference
    serves until then; RuntimeError where a graph could not hold it. CUDA C++ serves after a
    recorded run alone, and is held against the reference all the same.
    """
    capturing = _capturing()
    may_check = not (compiling or capturing)
    for name in _recorded(op, device, usable):
        problem = verdict(op, device, name, may_check) if name == "cuda" else ""
        if not problem:
            return name
        if problem != NOT_CHECKED:
            _say(f"{op} on {device} does without CUDA C++: {problem}")
    if "triton" not in usable:
        problem = _triton.unavailable_reason(torch.device(device)) or "it has no Triton kernel"
    else:
        problem = verdict(op, device, "triton", may_check)
    if not problem:
        return "triton"
    if capturing and op not in CAPTURED_AS_PLAIN_TORCH:
        raise RuntimeError(
            f"{op}: the back-end in a CUDA graph must be triton, got plain torch on {device}: "
            f"{problem}; call ops.warmup() before the capture, or leave this op out of it"
        )
    _say(f"{op} on {device} runs as plain torch: {problem}")
    return "reference"


def agreement(op: str, device: str, compiling: bool) -> str:
    """:func:`verdict` on CUDA C++ that was named: no GPU may have run it before."""
    if getattr(_this_thread, "checking", False):
        return NOT_CHECKED  # else the check would wait for itself
    return verdict(op, device, "cuda", may_check=not (compiling or _capturing()))


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _recorded(op: str, device: str, usable: tuple[str, ...]) -> list[str]:
    """The usable back-ends that this architecture has run without a wrong result, fastest first."""
    arch = _triton.properties(torch.device(device)).arch
    return [name for name in RECORDED_RUNS.get(op, {}).get(arch, ()) if name in usable]


def verdict(op: str, device: str, backend: str, may_check: bool = True) -> str:
    """ "" if ``backend`` agreed with ``op``'s reference on ``device``, else the problem."""
    key = (op, device, backend)
    if key not in _verdicts:
        if _remembered(*key):
            _verdicts[key] = ""
        elif not may_check:
            return NOT_CHECKED
        else:
            problem = _check(*key)
            if problem == NO_MEMORY:  # which may be another time
                return problem
            _verdicts[key] = problem
            if not problem:
                _remember(*key)
    return _verdicts[key]


def _check(op: str, device: str, backend: str) -> str:
    """Runs the op's self-check in a thread of its own, out of reach of what the caller has set:
    autocast, inference mode, a default device, torch's modes, `record_stats`."""
    check = importlib.import_module("clustermim_fast.ops._self_checks").CHECKS[op]
    strict = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    dtype = torch.get_default_dtype()

    def run() -> None:
        _this_thread.checking = True
        check(torch.device(device), backend)

    try:
        torch.use_deterministic_algorithms(False)  # the reference may use others
        torch.set_default_dtype(torch.float32)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(run).result()
    except torch.cuda.OutOfMemoryError:
        return NO_MEMORY
    except Exception as error:  # noqa: BLE001  a kernel that fails must not end the user's program
        _require_usable(op, device, error)
        title = TITLES[backend]
        return f"its {title} kernels failed their check: {type(error).__name__}: {error}"
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=only_warns)
        torch.set_default_dtype(dtype)
    return ""


def _require_usable(op: str, device: str, error: Exception) -> None:
    """After an illegal address every call on the device fails, those of plain torch too."""
    if not device.startswith("cuda"):
        return
    try:
        torch.cuda.synchronize(device)
    except Exception:  # noqa: BLE001  its type differs between versions of torch
        raise RuntimeError(
            f"{op}: the check of its kernels must leave {device} usable, got {error}; no "
            "call on it can succeed in this process: start again with CLUSTERMIM_BACKEND=reference"
        ) from error


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        _log.warning(line)


def _identity(op: str, device: str, backend: str) -> str:
    """Everything that a verdict depends on."""
    found = torch.device(device)
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else device
    sources = hashlib.sha256()
    for file in sorted((*Path(__file__).parent.rglob("*.py"), *_nvrtc.sources())):
        sources.update(file.read_bytes())
    # Not from the metadata: AMD's and nightly builds are packages of other names.
    triton = importlib.import_module("triton").__version__
    versions = f"{__version__}, torch {torch.__version__}, triton {triton}"
    if backend == "cuda":
        versions += f", {_nvrtc.compiler()}"
    return f"{op} ({backend}) on {name}: {versions}, {sources.hexdigest()[:12]}"


def _passed() -> list[str]:
    """What the cache says; nothing where it is missing or damaged."""
    try:
        found = json.loads(_user_cache.read(PASSED) or b"[]")
    except ValueError:
        return []
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []


def _remembered(op: str, device: str, backend: str) -> bool:
    return _identity(op, device, backend) in _passed()


def _remember(op: str, device: str, backend: str) -> None:
    lines = sorted({*_passed(), _identity(op, device, backend)})
    _user_cache.write(PASSED, json.dumps(lines, indent=1).encode())


def standing(op: str, device: str, usable: tuple[str, ...]) -> str:
    """What ``auto`` does for ``op`` on the GPU ``device``, in words; nothing is run."""
    for name in _recorded(op, device, usable):
        problem = verdict(op, device, name, may_check=False) if name == "cuda" else ""
        if problem in ("", NOT_CHECKED):
            return f"{name}: such GPUs have run it in our hands"
    if "triton" not in usable:
        return "plain torch"
    problem = verdict(op, device, "triton", may_check=False)
    if problem == NOT_CHECKED:
        return "triton, once it agrees with plain torch here: at first use, or in ops.warmup()"
    return f"plain torch: {problem}" if problem else "triton: agreed with plain torch here"
