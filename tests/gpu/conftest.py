"""A CUDA driver that runs nothing, for the tests of the way to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def cuda_h() -> Path:
    """The folder of NVIDIA's cuda.h."""
    triton = pytest.importorskip("triton", reason="triton brings NVIDIA's cuda.h")
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    if not (folder / "cuda.h").exists():
        pytest.skip("this triton has no cuda.h")
    return folder


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory, cuda_h: Path) -> Path:
    """A folder whose libcuda.so.1 writes down its calls, for LD_LIBRARY_PATH."""
    folder = tmp_path_factory.mktemp("fake_driver")
    command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
               f"-I{cuda_h}", HERE / "fake_libcuda.cpp", "-o", folder / "libcuda.so.1"]  # fmt: skip
    subprocess.run(command, check=True)
    return folder
