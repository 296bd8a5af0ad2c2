"""The audit of a wheel sees what must not be in one, and what must."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tools import audit_wheel

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ldd")), reason="no g++ or ldd here"
)
HEADER = "clustermim_fast/kernels/hopper/instructions.h"


@pytest.fixture
def csrc(monkeypatch, tmp_path: Path) -> Path:
    folder = tmp_path / "csrc"
    for name in ("hopper/instructions.h", "an_op/hopper_filter.cu", "an_op/an_op.h"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"// {name}\n")
    monkeypatch.setattr(audit_wheel, "CSRC", folder)
    return folder


def wheel(folder: Path, core: Path, **changes: str) -> Path:
    """A wheel with all it needs, but for ``changes``: file to text, "" to leave it out."""
    kernels = "clustermim_fast/kernels"
    contents = {
        "clustermim_fast/py.typed": "\n",
        "clustermim_fast.dist-info/licenses/LICENSE": "\n",
        HEADER: "// hopper/instructions.h\n",
        f"{kernels}/an_op/hopper_filter.cu": "// an_op/hopper_filter.cu\n",
    } | changes
    path = folder / "a.whl"
    with zipfile.ZipFile(path, "w") as out:
        out.write(core, "clustermim_fast/_core.so")
        for name, text in contents.items():
            if text:
                out.writestr(name, text)
    return path


def core(folder: Path, *libraries: str) -> Path:
    """A shared object that links ``libraries``, made for it."""
    (folder / "core.cpp").write_text("int f() { return 1; }\n")
    compiler = ["g++", "-shared", "-Wl,--no-as-needed", "core.cpp", "-o"]
    links = []
    for name in libraries:
        links.append(folder / f"lib{name}.so.1")
        soname = f"-Wl,-soname,{links[-1].name}"
        subprocess.run([*compiler, links[-1], soname], cwd=folder, check=True)
    out = folder / "_core.so"
    subprocess.run([*compiler, out, *links], cwd=folder, check=True)
    return out


def test_a_whole_wheel_passes(csrc, tmp_path) -> None:
    assert audit_wheel.audit(wheel(tmp_path, core(tmp_path))) == []


@pytest.mark.parametrize("library", ["cuda", "cudart", "nvrtc"])
def test_a_core_that_links_cuda_is_seen(csrc, tmp_path, library) -> None:
    problems = audit_wheel.audit(wheel(tmp_path, core(tmp_path, library)))
    assert problems == [f"clustermim_fast/_core.so links lib{library}.so.1"]


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({HEADER: ""}, f"{HEADER} must be the file of csrc/"),
        ({HEADER: "// of another release\n"}, f"{HEADER} must be the file of csrc/"),
        (
            {"clustermim_fast/kernels/an_op/an_op.h": "//"},
            "clustermim_fast/kernels/an_op/an_op.h is no kernel of csrc/",
        ),
    ],
)
def test_kernels_are_those_of_the_sources(csrc, tmp_path, changes, problem) -> None:
    assert audit_wheel.audit(wheel(tmp_path, core(tmp_path), **changes)) == [problem]
