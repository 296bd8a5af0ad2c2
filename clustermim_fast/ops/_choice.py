"""Which GPU back-end an op takes when none is named: one with a recorded correct run, or one that
passes a check on this very device.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
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


def fastest(op: str, device: str, usable: tuple[str, ...], compiling: bool) -> str:
    """The back-end for ``op`` on the GPU ``device``, of those that can run there.

    Without a recorded run on this architecture Triton is held against the reference first: once per
    device and version, and never while torch compiles or a CUDA graph is captured. The reference
    serves until then.
    """
    arch = _triton.properties(torch.device(device)).arch
    for name in RECORDED_RUNS.get(op, {}).get(arch, ()):
        if name in usable:
            return name
    if "triton" not in usable:
        reason = _triton.unavailable_reason(torch.device(device)) or "it has no Triton kernel"
        _say(f"{op} on {device} runs as plain torch: {reason}")
        return "reference"
    busy = compiling or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    problem = verdict(op, device, may_check=not busy)
    if not problem:
        return "triton"
    _say(f"{op} on {device} runs as plain torch: {problem}")
    return "reference"


# torch.compiler.assume_constant_result without importing torch's compiler: the compiler calls
# `fastest` itself instead of tracing it.
fastest._dynamo_marked_constant = True  # type: ignore[attr-defined]


def verdict(op: str, device: str, may_check: bool = True) -> str:
    """ "" if ``op``'s Triton kernels agreed with its reference on ``device``, else the problem."""
    key = (op, device)
    if key not in _verdicts:
        if _remembered(op, device):
            _verdicts[key] = ""
        elif not may_check:
            return "its Triton kernels are not checked on this device yet (call ops.warmup())"
        else:
            _verdicts[key] = _check(op, device)
            if not _verdicts[key]:
                _remember(op, device)
    return _verdicts[key]


def _check(op: str, device: str) -> str:
    checks = importlib.import_module("clustermim_fast.ops._self_checks").CHECKS
    try:
        checks[op](torch.device(device))
    except Exception as error:  # noqa: BLE001  a kernel that fails must not end the user's program
        return f"its Triton kernels failed their check: {type(error).__name__}: {error}"
    return ""


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
    kernels = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*/triton_*.py")):
        kernels.update(file.read_bytes())
    triton = importlib.metadata.version("triton")
    versions = f"{__version__}, torch {torch.__version__}, triton {triton}"
    return f"{op} on {name}: {versions}, {kernels.hexdigest()[:12]}"


def _passed() -> list[str]:
    try:
        found = json.loads(_passed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _remembered(op: str, device: str) -> bool:
    return _identity(op, device) in _passed()


def _remember(op: str, device: str) -> None:
    """Best effort: a home that cannot be written costs a check in the next process."""
    file = _passed_file()
    lines = sorted({*_passed(), _identity(op, device)})
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(lines, indent=1), encoding="utf-8")
        temporary.replace(file)
    except OSError:
        pass
