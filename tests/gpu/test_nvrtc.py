"""CUDA C++ from its source to machine code and to the driver, with the real compiler; no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from clustermim_fast.ops import _cuda, _nvrtc, _user_cache
from tests.gpu import ptxas_log

HERE = Path(__file__).parent
TILE = (("TILE", 8192),)

needs_nvrtc = pytest.mark.skipif(
    _nvrtc.unavailable_reason() is not None, reason=f"NVRTC: {_nvrtc.unavailable_reason()}"
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _nvrtc._cubin.cache_clear()
    yield
    _nvrtc._cubin.cache_clear()


@pytest.fixture
def kernels(monkeypatch, tmp_path) -> Path:
    """In place of the package's sources, the small kernel of these tests."""
    folder = tmp_path / "kernels"
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny_hopper.cu").write_text((HERE / "tiny_hopper.cu").read_text())
    (folder / "tiny" / "sizes.h").write_text("constexpr int kTile = TILE;\n")
    monkeypatch.setattr(_nvrtc, "KERNELS", folder)
    return folder


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """The sources that are compiled from here on, and not found in a cache."""
    seen: list[str] = []
    compile_source = _nvrtc.compile_source

    def noted(source, options=()):
        seen.append(source)
        return compile_source(source, options)

    monkeypatch.setattr(_nvrtc, "compile_source", noted)
    return seen


OPTIONS = _cuda.Kernel("tiny_hopper.cu", "tiny", TILE).options


@needs_nvrtc
def test_hopper_s_instructions_are_compiled_cleanly(kernels):
    sass = pytest.importorskip("tests.gpu.sass", reason="triton brings the disassembler")
    cubin, log = _nvrtc.compile_source("tiny_hopper.cu", (*OPTIONS, *ptxas_log.VERBOSE))
    assert "for 'sm_90a'" in log
    assert ptxas_log.problems(log) == []
    code = sass.instructions(cubin)
    assert code == sass.instructions(_nvrtc.cubin("tiny_hopper.cu", OPTIONS))  # as it is shipped
    counts = sass.count(code)
    assert counts["HGMMA"] >= 4
    assert counts["TMA"] >= 2
    assert counts["local"] == 0


LOOP = 'asm volatile("wgmma.commit_group'
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* p) {
  float a[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) a[i] = p[i * threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) p[i * 63] = a[i] * a[63 - i];
}
"""
TAKING = """
extern "C" __global__ void taking(float* p) {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  p[0] = 1;
}
"""


@needs_nvrtc
@pytest.mark.parametrize(
    "found, change",
    [
        ("wgmma serialised", lambda text: text.replace(LOOP, "c[0] += 1.0f;\n    " + LOOP)),
        ("spills", lambda text: SPILLING),
        ("a stack", lambda text: SPILLING),
        ("setmaxnreg ignored", lambda text: TAKING),
        ("a warning", lambda text: text + "\n__device__ int unused() { int a; return a; }"),
    ],
)
def test_what_costs_speed_is_found_in_the_log(kernels, found, change):
    source = kernels / "tiny_hopper.cu"
    source.write_text(change(source.read_text()))
    _, log = _nvrtc.compile_source("tiny_hopper.cu", (*OPTIONS, *ptxas_log.VERBOSE))
    assert any(p.startswith(found) for p in ptxas_log.problems(log)), log


@needs_nvrtc
def test_an_error_carries_the_log(kernels):
    (kernels / "tiny" / "sizes.h").write_text("int tile = no_such_size;\n")
    with pytest.raises(RuntimeError, match=r"tiny_hopper\.cu: NVRTC_ERROR_COMPILATION") as error:
        _nvrtc.cubin("tiny_hopper.cu", OPTIONS)
    assert "tiny/sizes.h" in str(error.value)
    assert "no_such_size" in str(error.value)


@needs_nvrtc
def test_compiled_once_and_kept_for_the_next_process(kernels, compiled):
    with ThreadPoolExecutor(8) as threads:
        cubins = set(threads.map(lambda _: _nvrtc.cubin("tiny_hopper.cu", OPTIONS), range(16)))
    assert len(cubins) == 1
    _nvrtc._cubin.cache_clear()  # a new process
    assert _nvrtc.cubin("tiny_hopper.cu", OPTIONS) in cubins
    assert compiled == ["tiny_hopper.cu"]


@needs_nvrtc
@pytest.mark.parametrize("changed", ["source", "header", "option", "compiler"])
def test_whatever_changes_is_compiled_anew(kernels, compiled, monkeypatch, changed):
    _nvrtc.cubin("tiny_hopper.cu", OPTIONS)
    _nvrtc._cubin.cache_clear()
    options = OPTIONS
    if changed == "option":
        options = (*OPTIONS, "-DMORE=1")
    elif changed == "compiler":
        other = _nvrtc.Compiler(_nvrtc.compiler().path, (99, 0))
        monkeypatch.setattr(_nvrtc, "compiler", lambda: other)
    else:
        file = kernels / ("tiny_hopper.cu" if changed == "source" else "tiny/sizes.h")
        file.write_text(file.read_text() + "// changed\n")
    _nvrtc.cubin("tiny_hopper.cu", options)
    assert len(compiled) == 2


@needs_nvrtc
@pytest.mark.parametrize("damage", [b"", b"short", lambda kept: kept[:-1], lambda kept: kept[1:]])
def test_a_damaged_cache_is_mended(kernels, compiled, damage):
    first = _nvrtc.cubin("tiny_hopper.cu", OPTIONS)
    (file,) = _user_cache.file("kernels").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole) if callable(damage) else damage)
    _nvrtc._cubin.cache_clear()
    assert _nvrtc.cubin("tiny_hopper.cu", OPTIONS) == first
    assert len(compiled) == 2
    assert [f.read_bytes() for f in file.parent.iterdir()] == [whole]


@needs_nvrtc
def test_a_home_that_cannot_be_written_costs_time(kernels, compiled, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder cannot be made in it
    first = _nvrtc.cubin("tiny_hopper.cu", OPTIONS)
    _nvrtc._cubin.cache_clear()
    assert _nvrtc.cubin("tiny_hopper.cu", OPTIONS) == first
    assert len(compiled) == 2


FAKE_NVRTC = """
#include <dlfcn.h>
#include <cstddef>
#include <cstring>
extern "C" {
const char* nvrtcGetErrorString(int) { return "failed"; }
int nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*,
                       const char* const*) { return 0; }
int nvrtcDestroyProgram(void**) { return 0; }
int nvrtcCompileProgram(void*, int, const char* const*) {
  return dlopen("libnvrtc-builtins.so.13.0", RTLD_NOW) ? 0 : 7;
}
int nvrtcGetCUBINSize(void*, size_t* size) { *size = 4; return 0; }
int nvrtcGetCUBIN(void*, char* cubin) { std::memcpy(cubin, "code", 4); return 0; }
int nvrtcGetProgramLogSize(void*, size_t* size) { *size = 1; return 0; }
int nvrtcGetProgramLog(void*, char* log) { *log = 0; return 0; }
}
"""


def test_a_compiler_that_does_not_find_its_other_half_is_helped(tmp_path):
    """NVRTC 13.0 asks for libnvrtc-builtins, which lies beside it, without knowing where."""
    core = pytest.importorskip("clustermim_fast._core", reason="the core is not built")
    (tmp_path / "nvrtc.cpp").write_text(FAKE_NVRTC)
    (tmp_path / "builtins.cpp").write_text("")
    for source, name in (
        ("builtins.cpp", "libnvrtc-builtins.so.13.0"),
        ("nvrtc.cpp", "libnvrtc.so.13"),
    ):
        command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", source, "-o", name]
        subprocess.run(command, cwd=tmp_path, check=True)
    cubin, log = core.compile_gpu_kernels(
        library=str(tmp_path / "libnvrtc.so.13"), name="a.cu", source="", headers={}, options=[]
    )
    assert (cubin, log) == (b"code", "")


@pytest.fixture
def no_compiler(monkeypatch):
    _nvrtc.found.cache_clear()
    monkeypatch.setattr(_nvrtc, "_core", lambda: types.SimpleNamespace(nvrtc_version=refused))
    yield
    _nvrtc.found.cache_clear()


def refused(library):
    raise RuntimeError(f"{library}: cannot open shared object file")


@pytest.mark.parametrize(
    "cuda, says",
    [
        ("13.2", "libnvrtc was not found (pip install nvidia-cuda-nvrtc)"),
        ("12.8", "libnvrtc was not found (pip install nvidia-cuda-nvrtc-cu12)"),
        ("11.8", "it needs a torch for CUDA 12.9 or newer, got one for 11.8"),
        (None, "libnvrtc was not found (pip install nvidia-cuda-nvrtc)"),
    ],
)
def test_without_nvrtc_the_remedy_is_named(monkeypatch, no_compiler, cuda, says):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert _nvrtc.unavailable_reason() == says
    with pytest.raises(RuntimeError, match="must be compiled: "):
        _nvrtc.compile_source("tiny_hopper.cu")


def test_an_old_nvrtc_is_a_reason(monkeypatch):
    """Before 12.9 it makes the filter wait for each of its products."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for version, reason in (
        ((12, 8), "it needs NVRTC 12.9 or newer, got 12.8 (libnvrtc.so)"),
        ((12, 9), None),
    ):
        there = _nvrtc.Compiler("libnvrtc.so", version)
        monkeypatch.setattr(_nvrtc, "found", lambda there=there: there)
        assert _nvrtc.unavailable_reason() == reason
        assert (_nvrtc.compiler() is None) == (reason is not None)


@pytest.mark.parametrize("cuda, package", [("13.2", "cu13"), ("12.8", "cuda_nvrtc")])
def test_the_compiler_is_of_torch_s_own_cuda(monkeypatch, tmp_path, cuda, package):
    """Another would make machine code that the driver below torch may not know."""
    major = cuda.split(".")[0]
    for folder in ("cu13", "cuda_nvrtc"):
        for name in ("libnvrtc.so.12", "libnvrtc.so.13"):
            (tmp_path / folder / "lib").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "lib" / name).touch()
    nvidia = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(_nvrtc.importlib.util, "find_spec", lambda name: nvidia)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = list(_nvrtc._candidates())
    assert found[0] == str(tmp_path / package / "lib" / f"libnvrtc.so.{major}")
    assert found[-1] == f"libnvrtc.so.{major}"
    assert all(path.endswith(major) for path in found)


@needs_nvrtc
def test_from_the_source_to_the_driver(kernels, fake_driver, tmp_path):
    """On a driver that writes down its calls, with tensors of the CPU for those of a GPU."""
    code = """
import sys, types, torch
from pathlib import Path
from clustermim_fast.ops import _cuda, _nvrtc
_nvrtc.KERNELS = Path(sys.argv[1])
torch.cuda.current_stream = lambda device: types.SimpleNamespace(cuda_stream=55)
a, out = torch.zeros(3, 64, 256, dtype=torch.float16)[:, :, :128], torch.zeros(64, 64)
kernel = _cuda.Kernel("tiny_hopper.cu", "tiny", (("TILE", 8192),), cluster=2, shared_bytes=17000)
for device in ("cuda:3", "cuda:3", "cuda:4"):
    rows = _cuda.tensor_map(a, (1, 32, 64), 128)
    kernel.launch(torch.device(device), 6, [rows, _cuda.address(out), _cuda.int32(-2)])
print(a.data_ptr(), _cuda.address(out).hex())
"""
    # NVRTC would use more of a driver than this one has: the child finds the cubin in the cache.
    _nvrtc.cubin("tiny_hopper.cu", OPTIONS)
    log = tmp_path / "log"
    environment = os.environ | {"LD_LIBRARY_PATH": str(fake_driver), "FAKE_CUDA_LOG": str(log),
                                "FAKE_CUDA_ARGUMENTS": "128,8,4"}  # fmt: skip
    command = [sys.executable, "-c", code, str(kernels)]
    result = subprocess.run(
        command, env=environment, text=True, capture_output=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    address, out = result.stdout.split()
    map_ = (
        f"cuTensorMapEncodeTiled type 6 at {address} sizes 128 64 3 strides 512 32768 box 64 32 1 "
        "steps 1 1 1 interleave 0 swizzle 3 promotion 2 fill 0"
    )
    loading = ["cuModuleLoadData ELF in 73", "cuModuleGetFunction 2 tiny",
               "cuFuncSetAttribute 3 shared bytes 17000"]  # fmt: skip
    launch = (
        "cuLaunchKernelEx 3 6 1 1 128 1 1 17000 stream 55 cluster 2 1 1 "
        f"{'a5' * 128} {out} feffffff"
    )
    assert log.read_text().splitlines() == [
        map_, "cuInit 0", "cuDevicePrimaryCtxRetain 73", *loading, launch,
        map_, launch,
        map_, *loading, launch,
    ]  # fmt: skip


def test_a_gpu_that_is_not_hopper_is_named(monkeypatch):
    from clustermim_fast.ops import _backend, _triton

    core = types.SimpleNamespace(gpu_problem=lambda: "")
    monkeypatch.setattr(_backend, "core", lambda: core)
    monkeypatch.setattr(_triton, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(_nvrtc, "unavailable_reason", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for arch, reason in (("sm_80", "is sm_80"), ("sm_100", "is sm_100"), ("gfx942", "is gfx942")):
        found = _triton.Device(arch, 0, 1, 1)
        monkeypatch.setattr(_triton, "properties", lambda device, found=found: found)
        why = _cuda.unavailable_reason(torch.device("cuda:0"))
        assert why == f"it needs compute capability 9.0, cuda:0 {reason}"
    monkeypatch.setattr(_triton, "properties", lambda device: _triton.Device("sm_90", 90, 132, 1))
    assert _cuda.unavailable_reason(torch.device("cuda:0")) is None
    monkeypatch.setattr(_triton, "unavailable_reason", lambda device: "triton is not installed")
    assert _cuda.unavailable_reason(torch.device("cuda:0")) == "triton is not installed"
    monkeypatch.setattr(_nvrtc, "unavailable_reason", lambda: "libnvrtc was not found")
    assert _cuda.unavailable_reason(torch.device("cuda:0")) == "libnvrtc was not found"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _cuda.unavailable_reason(torch.device("cuda:0")) == "no CUDA device is visible"
    core.gpu_problem = lambda: "no CUDA driver"
    assert _cuda.unavailable_reason(torch.device("cuda:0")) == "no CUDA driver"
    assert _cuda.unavailable_reason(torch.device("cpu")) == "it needs CUDA tensors, got cpu"
