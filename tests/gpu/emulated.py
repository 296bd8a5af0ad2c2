"""CUDA C++ on the CPU: a kernel's own source over the instructions of tests/cpp/emulated.

Each kind of call is compiled when it first comes, into build/emulated, and kept there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from clustermim_fast.ops import _cuda

ROOT = Path(__file__).resolve().parents[2]
EMULATED, CORE = ROOT / "tests/cpp/emulated", ROOT / "csrc"
LIBRARIES = ROOT / "build/emulated"
# What stands for each file of kernels/ here: it has the kernel's name and constants.
SOURCES = {
    "nearest_centroid/hopper_filter.cu": "nearest_centroid/filter_library.cpp",
    "masked_cross_entropy/hopper_linear.cu": "masked_cross_entropy/linear_library.cpp",
}
OPTIONS = ("-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden")


@functools.cache
def _digest(op: str) -> bytes:
    """Of everything that a library for the folder ``op`` is made of."""
    digest = hashlib.sha256()
    for folder in (root / name for root in (EMULATED, CORE) for name in ("hopper", op)):
        for file in sorted((*folder.rglob("*.h"), *folder.rglob("*.cpp"))):
            digest.update(file.read_bytes())
    return digest.digest()


@functools.cache
def _library(kernel: str, options: tuple[str, ...]) -> Any:
    source = EMULATED / SOURCES[kernel]
    name = hashlib.sha256(_digest(source.parent.name) + repr(options).encode()).hexdigest()[:24]
    path = LIBRARIES / f"{name}.so"
    if not path.exists():
        LIBRARIES.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=LIBRARIES) as folder:
            made = Path(folder, "library.so")
            includes = (f"-I{EMULATED}", f"-I{CORE}")
            compiler = os.environ.get("CXX", "g++")
            command = [compiler, *OPTIONS, *includes, *options, str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            made.replace(path)  # whoever else compiled it made the same
    return ctypes.CDLL(str(path))


def launch(kind: Any, blocks: int, arguments: bytes, *given: torch.Tensor | torch.device) -> None:
    """In place of ``cuda_filter.launch`` and ``cuda_few.launch``."""
    library = _library(kind.kernel.source, kind.kernel.options)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    tensors = [ctypes.c_void_p(t.data_ptr()) for t in given if isinstance(t, torch.Tensor)]
    getattr(library, kind.kernel.name)(buffer, *tensors, blocks)


def available(device: torch.device) -> None:
    """In place of ``_cuda.unavailable_reason``; torch's compiler traces it, as no Mock."""


@contextmanager
def running() -> Iterator[None]:
    """``backend="cuda"`` takes CPU tensors."""
    from clustermim_fast.ops.masked_linear_cross_entropy import cuda_few
    from clustermim_fast.ops.nearest_centroid import cuda_filter

    with (
        mock.patch.object(_cuda, "unavailable_reason", available),
        mock.patch.object(cuda_filter, "launch", launch),
        mock.patch.object(cuda_few, "launch", launch),
    ):
        yield
