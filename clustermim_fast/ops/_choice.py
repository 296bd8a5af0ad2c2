"""Which GPU back-end an op takes when none is named: one with a recorded correct run, or one that
passes a check on this very device.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from clustermim_fast._version import __version__
from clustermim_fast.ops import _triton

# op -> architecture -> back-ends that a GPU of it has run without a wrong result, fastest first.
# benchmarks/gpu_suite prints these lines; its results stand in benchmarks/results.
RECORDED_RUNS: dict[str, dict[str, tuple[str, ...]]] = {}

_log = logging.getLogger("clustermim_fast")
_said: set[str] = set()
# (op, device) -> "" where Triton agreed with the reference, else what went wrong
_verdicts: dict[tuple[str, str], str] = {}
NOT_CHECKED = "its Triton kernels are not checked on this device yet (call ops.warmup())"
NO_MEMORY = "no memory was left to check its Triton kernels"
# The other ops' plain torch reads from the device, which a CUDA graph cannot capture.
CAPTURED_AS_PLAIN_TORCH = {"masked_cross_entropy", "masked_linear_cross_entropy"}


def fastest(op: str, device: str, usable: tuple[str, ...], compiling: bool) -> str:
    """The back-end for ``op`` on the GPU ``device``, of those that can run there.

    Without a recorded run on this architecture Triton is held against the reference first: once per
    device and version, and never while torch compiles or a CUDA graph is captured. The reference
    serves until then; RuntimeError where a graph could not hold it.
    """
    recorded = recorded_run(op, device, usable)
    if recorded:
        return recorded
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if "triton" not in usable:
        problem = _triton.unavailable_reason(torch.device(device)) or "it has no Triton kernel"
    else:
        problem = verdict(op, device, may_check=not (compiling or capturing))
    if not problem:
        return "triton"
    if capturing and op not in CAPTURED_AS_PLAIN_TORCH:
        raise RuntimeError(
            f"{op}: the back-end in a CUDA graph must be triton, got plain torch on {device}: "
            f"{problem}; call ops.warmup() before the capture, or leave this op out of it"
        )
    _say(f"{op} on {device} runs as plain torch: {problem}")
    return "reference"


def recorded_run(op: str, device: str, usable: tuple[str, ...]) -> str | None:
    """The fastest usable back-end that this architecture has run without a wrong result."""
    arch = _triton.properties(torch.device(device)).arch
    return next((name for name in RECORDED_RUNS.get(op, {}).get(arch, ()) if name in usable), None)


def verdict(op: str, device: str, may_check: bool = True) -> str:
    """ "" if ``op``'s Triton kernels agreed with its reference on ``device``, else the problem."""
    key = (op, device)
    if key not in _verdicts:
        if _remembered(op, device):
            _verdicts[key] = ""
        elif not may_check:
            return NOT_CHECKED
        else:
            problem = _check(op, device)
            if problem == NO_MEMORY:  # which may be another time
                return problem
            _verdicts[key] = problem
            if not problem:
                _remember(op, device)
    return _verdicts[key]


def _check(op: str, device: str) -> str:
    """Runs the op's self-check in a thread of its own, out of reach of what the caller has set:
    autocast, inference mode, a default device, torch's modes, `record_stats`."""
    check = importlib.import_module("clustermim_fast.ops._self_checks").CHECKS[op]
    strict = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    dtype = torch.get_default_dtype()
    try:
        torch.use_deterministic_algorithms(False)  # the reference may use others
        torch.set_default_dtype(torch.float32)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(check, torch.device(device)).result()
    except torch.cuda.OutOfMemoryError:
        return NO_MEMORY
    except Exception as error:  # noqa: BLE001  a kernel that fails must not end the user's program
        _require_usable(op, device, error)
        return f"its Triton kernels failed their check: {type(error).__name__}: {error}"
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
            f"{op}: the check of its Triton kernels must leave {device} usable, got {error}; no "
            "call on it can succeed in this process: start again with CLUSTERMIM_BACKEND=reference"
        ) from error


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        _log.warning(line)


def _passed_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "clustermim_fast" / "checked_kernels.json"


def _identity(op: str, device: str) -> str:
    """Everything that a verdict depends on."""
    found = torch.device(device)
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else device
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(file.read_bytes())
    # Not from the metadata: AMD's and nightly builds are packages of other names.
    triton = importlib.import_module("triton").__version__
    versions = f"{__version__}, torch {torch.__version__}, triton {triton}"
    return f"{op} on {name}: {versions}, {sources.hexdigest()[:12]}"


def _passed() -> list[str]:
    """What the cache says; nothing where it is missing, damaged or out of reach."""
    try:
        found = json.loads(_passed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home
        return []
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []


def _remembered(op: str, device: str) -> bool:
    return _identity(op, device) in _passed()


def _remember(op: str, device: str) -> None:
    """Best effort: a home that cannot be written, or two processes at once, cost another check."""
    lines = sorted({*_passed(), _identity(op, device)})
    with contextlib.suppress(OSError, RuntimeError):
        file = _passed_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(lines, out, indent=1)
            Path(temporary).replace(file)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise


def standing(op: str, device: str, usable: tuple[str, ...]) -> str:
    """What ``auto`` does for ``op`` on the GPU ``device``, in words; nothing is run."""
    recorded = recorded_run(op, device, usable)
    if recorded:
        return f"{recorded}: such GPUs have run it in our hands"
    if "triton" not in usable:
        return "plain torch"
    problem = verdict(op, device, may_check=False)
    if problem == NOT_CHECKED:
        return "triton, once it agrees with plain torch here: at first use, or in ops.warmup()"
    return f"plain torch: {problem}" if problem else "triton: agreed with plain torch here"
