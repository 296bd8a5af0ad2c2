"""No AVX code outside the ISA units, and a checker that would see it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.check_disassembly import check

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the check reads x86-64 code"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("g++", "objdump", "readelf"))),
        reason="no g++ or binutils here",
    ),
]

GENERIC = """
int add_one(int x);
float scale_all(float* p, int n) { for (int i = 0; i < n; ++i) p[i] *= 3; return p[0]; }
"""
GENERIC_WITH_AVX = """
__attribute__((target("avx2"))) float scale_all(float* p, int n) {
  for (int i = 0; i < n; ++i) p[i] *= 3;
  return p[0];
}
"""
ISA_PRIVATE = """
namespace { float helper(const float* p) { return p[0] * p[1] + p[2]; } }
float sum_avx512(const float* p, int n) {
  float s = 0;
  for (int i = 0; i < n; ++i) s += helper(p + i);
  return s;
}
"""
ISA_WITH_INLINE = """
__attribute__((noinline)) inline float shared_helper(const float* p) { return p[0] * p[1] + p[2]; }
float sum_avx512(const float* p, int n) {
  float s = 0;
  for (int i = 0; i < n; ++i) s += shared_helper(p + i);
  return s;
}
"""


def build(folder: Path, generic: str, isa: str) -> tuple[list[Path], Path]:
    """Objects of plain.cpp and kernel_avx512.cpp and the module linked from them."""
    objects = []
    for name, text, flags in (
        ("plain.cpp", generic, []),
        ("kernel_avx512.cpp", isa, ["-mavx512f", "-mfma"]),
    ):
        source, target = folder / name, folder / f"{name}.o"
        source.write_text(text)
        command = ["g++", "-O2", "-fPIC", "-fvisibility=hidden", *flags, "-c", source, "-o", target]
        subprocess.run(command, check=True)
        objects.append(target)
    module = folder / "module.so"
    subprocess.run(["g++", "-shared", *objects, "-o", module], check=True)
    return objects, module


def test_clean_build_passes(tmp_path: Path) -> None:
    objects, module = build(tmp_path, GENERIC, ISA_PRIVATE)
    assert [check(path) for path in (*objects, module)] == [[], [], []]


def test_sees_avx_in_a_generic_unit(tmp_path: Path) -> None:
    objects, module = build(tmp_path, GENERIC_WITH_AVX, ISA_PRIVATE)
    assert "scale_all" in check(objects[0])[0]
    assert "scale_all" in check(module)[0]


def test_sees_an_inline_function_of_an_isa_unit(tmp_path: Path) -> None:
    objects, module = build(tmp_path, GENERIC, ISA_WITH_INLINE)
    assert "weak symbol" in check(objects[1])[0]
    assert "shared_helper" in check(module)[0]


def test_refuses_a_stripped_module(tmp_path: Path) -> None:
    _, module = build(tmp_path, GENERIC, ISA_PRIVATE)
    subprocess.run(["strip", module], check=True)
    assert "stripped" in check(module)[0]


def test_our_core_is_clean() -> None:
    spec = importlib.util.find_spec("clustermim_fast._core")
    assert spec is not None, "the compiled core is not built: run `make core`"
    assert spec.origin is not None
    assert check(Path(spec.origin)) == []


def test_our_objects_are_clean() -> None:
    archive = Path(__file__).resolve().parents[2] / "build" / "dev" / "libclustermim_core.a"
    if not archive.is_file():
        pytest.skip("no build/dev: object files exist only beside a `make core` build")
    assert check(archive) == []
