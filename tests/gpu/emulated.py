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
SOURCE = EMULATED / "nearest_centroid/filter_library.cpp"
OPTIONS = ("-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden")


@functools.cache
def _sources() -> bytes:
    """A digest of everything that a library is made of."""
    digest = hashlib.sha256()
    for folder in (EMULATED, CORE / "hopper", CORE / "nearest_centroid"):
        for file in sorted((*folder.rglob("*.h"), *folder.rglob("*.cpp"))):
            digest.update(file.read_bytes())
    return digest.digest()


@functools.cache
def _library(options: tuple[str, ...]) -> Any:
    name = hashlib.sha256(_sources() + repr(options).encode()).hexdigest()[:24]
    path = LIBRARIES / f"{name}.so"
    if not path.exists():
        LIBRARIES.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=LIBRARIES) as folder:
            made = Path(folder, "library.so")
            includes = (f"-I{EMULATED}", f"-I{CORE}")
            compiler = os.environ.get("CXX", "g++")
            command = [compiler, *OPTIONS, *includes, *options, str(SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            made.replace(path)  # whoever else compiled it made the same
    return ctypes.CDLL(str(path))


def launch(kind: Any, blocks: int, arguments: bytes, packed: torch.Tensor) -> None:
    """In place of ``cuda_filter.launch``."""
    library = _library(kind.kernel.options)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    library.filter_rows(buffer, ctypes.c_void_p(packed.data_ptr()), blocks)


@contextmanager
def running() -> Iterator[None]:
    """``backend="cuda"`` takes CPU tensors."""
    from clustermim_fast.ops.nearest_centroid import cuda_filter

    with (
        mock.patch.object(_cuda, "unavailable_reason", return_value=None),
        mock.patch.object(cuda_filter, "launch", launch),
    ):
        yield
