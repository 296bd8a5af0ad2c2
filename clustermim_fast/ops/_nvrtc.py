"""CUDA C++ to machine code, by the compiler that comes with torch's CUDA packages.

Their sources lie beside this package, in ``kernels/``. Each is compiled where it is first used, for
the values it is specialised on, and what came of it is kept for the next process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clustermim_fast.ops import _user_cache

KERNELS = Path(__file__).parents[1] / "kernels"
OLDEST = (12, 9)  # those before serialise the filter's products (wgmma)
OPTIONS = ("--gpu-architecture=sm_90a", "-std=c++17", "-default-device")
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Compiler:
    """path: for dlopen. version: (13, 2)."""

    path: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.version[0]}.{self.version[1]} ({self.path})"


def _core() -> Any:
    from clustermim_fast.ops import _backend

    return _backend.core()


def _candidates() -> Iterator[str]:
    """Where pip's packages, conda and the system have an NVRTC of torch's own CUDA version."""
    of_torch = (torch.version.cuda or "").split(".")[0]
    namespace = importlib.util.find_spec("nvidia")
    packages = list(namespace.submodule_search_locations or ()) if namespace else []
    for major in (of_torch,) if of_torch else ("13", "12"):
        if int(major) >= OLDEST[0]:
            name = f"libnvrtc.so.{major}"
            folders = [Path(p, f"cu{major}", "lib") for p in packages]
            folders += [Path(p, "cuda_nvrtc", "lib") for p in packages]
            places = [folder / name for folder in (*folders, Path(sys.prefix, "lib"))]
            yield from (str(place) for place in places if place.exists())
            yield name


@functools.cache
def found() -> Compiler | None:
    """The first NVRTC that can be loaded, however old."""
    for path in _candidates():
        try:
            return Compiler(path, _core().nvrtc_version(library=path))
        except RuntimeError:
            continue
    return None


def compiler() -> Compiler | None:
    """The NVRTC that compiles the kernels."""
    there = found()
    return there if there and there.version >= OLDEST else None


def unavailable_reason() -> str | None:
    """None where kernels can be compiled, else the reason why not."""
    there, oldest = found(), ".".join(map(str, OLDEST))
    of_torch = torch.version.cuda or "13"
    if int(of_torch.split(".")[0]) < OLDEST[0]:
        return f"it needs a torch for CUDA {oldest} or newer, got one for {of_torch}"
    if there and there.version < OLDEST:
        return f"it needs NVRTC {oldest} or newer, got {there}"
    if there:
        return None
    package = "nvidia-cuda-nvrtc" + ("-cu12" if of_torch.startswith("12.") else "")
    return f"libnvrtc was not found (pip install {package})"


def compile_source(source: str, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """``source`` of :data:`KERNELS` as a cubin, and the compiler's log; nothing is kept.

    RuntimeError with the log where it cannot be compiled.
    """
    nvrtc = compiler()
    if nvrtc is None:
        raise RuntimeError(f"{source} must be compiled: {unavailable_reason()}")
    texts = _texts()
    return _core().compile_gpu_kernels(
        library=nvrtc.path,
        name=source,
        source=texts[source],
        headers={name: text for name, text in texts.items() if name.endswith(".h")},
        options=[*OPTIONS, *options],
    )


def sources() -> list[Path]:
    """The files of :data:`KERNELS`."""
    return sorted(f for f in KERNELS.rglob("*") if f.suffix in (".h", ".cu"))


def _texts() -> dict[str, str]:
    """Every source, by the name under which others include it."""
    return {f.relative_to(KERNELS).as_posix(): f.read_text(encoding="utf-8") for f in sources()}


def cubin(source: str, options: tuple[str, ...] = ()) -> bytes:
    """The same, compiled once: from this process or an earlier one."""
    with _one_at_a_time:
        return _cubin(source, options)


@functools.cache
def _cubin(source: str, options: tuple[str, ...]) -> bytes:
    version = nvrtc.version if (nvrtc := compiler()) else None
    identity = json.dumps([source, [*OPTIONS, *options], version, _texts()])
    name = f"kernels/{hashlib.sha256(identity.encode()).hexdigest()}.cubin"
    kept = _user_cache.read(name) or b""
    check, content = kept[:32], kept[32:]
    if hashlib.sha256(content).digest() != check:  # there is none, or it is damaged
        content = compile_source(source, options)[0]
        _user_cache.write(name, hashlib.sha256(content).digest() + content)
    return content
