"""The layers of ARCHITECTURE.md hold, and their checker sees a violation of each rule."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tools.check_layers import check_cpp, check_python

REPOSITORY = Path(__file__).resolve().parent.parent


def test_python_layers_hold() -> None:
    spec = importlib.util.find_spec("clustermim_fast")
    assert spec is not None and spec.submodule_search_locations
    assert check_python(Path(spec.submodule_search_locations[0])) == []


def test_cpp_layers_hold() -> None:
    assert (REPOSITORY / "csrc" / "core").is_dir()
    assert check_cpp(REPOSITORY / "csrc") == []


def plant(root: Path, file: str, text: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("ops/a/op.py", "from clustermim_fast import nn", "imports point down only"),
        ("ops/a/op.py", "def f():\n    import timm", "ops may import"),
        ("ops/a/op.py", "import triton", "triton_*.py only"),
        ("ops/a/op.py", "import torch\ntorch.library.Library('x', 'DEF')", "only ops/_library.py"),
        ("ops/a/op.py", "from torch.library import opcheck", "only ops/_library.py"),
        ("nn/loss.py", "from clustermim_fast import _core", "only info and ops import _core"),
        (
            "tokenizers/a.py",
            "from clustermim_fast._core import f",
            "only info and ops import _core",
        ),
        ("tokenizers/a.py", "from clustermim_fast.models import f", "siblings do not import"),
        ("tokenizers/a.py", "from ..models.vit import f", "siblings do not import"),
        ("evaluate/knn.py", "import clustermim_fast.train.loop", "siblings do not import"),
        ("train/loop.py", "from clustermim_fast import pretrain", "no part that the layers know"),
        ("recipes/a.py", "from clustermim_fast.cli import main", "imports point down only"),
        ("counter_rng.py", "import torch", "counter_rng may import numpy"),
        ("info.py", "from clustermim_fast import nn", "info may not import nn"),
        ("__init__.py", "from clustermim_fast import ops", "__init__ may not import ops"),
        ("unheard_of.py", "from clustermim_fast import ops", "has no row"),
        ("checkpoint.py", "import torch\ntorch.load('x')", "weights_only=True"),
        ("checkpoint.py", "import pickle\npickle.load(f)", "unpickled"),
        ("checkpoint.py", "from pickle import load", "unpickled"),
        ("data/a.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
        ("models/utils.py", "", "not utils"),
    ],
)
def test_sees_python_violations(tmp_path: Path, file: str, text: str, problem: str) -> None:
    plant(tmp_path, file, text)
    (found,) = check_python(tmp_path)
    assert problem in found
    assert file in found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("ops/a/triton_kernel.py", "import triton"),
        ("ops/a/op.py", "import math\nimport numpy\nimport torch\nfrom . import reference"),
        ("ops/_library.py", "import torch\ntorch.library.Library('x', 'DEF')"),
        ("ops/_backend.py", "from clustermim_fast import _core"),
        ("train/loop.py", "import timm\nfrom clustermim_fast.models import create_model"),
        ("cli.py", "from clustermim_fast import __version__, api, info"),
        ("checkpoint.py", "import torch\ntorch.load('x', weights_only=True)"),
        ("checkpoint.py", "import pickle\nerror = pickle.UnpicklingError"),
        ("__init__.py", "import typing as t\nif t.TYPE_CHECKING:\n    import clustermim_fast.nn"),
    ],
)
def test_allows_what_points_down(tmp_path: Path, file: str, text: str) -> None:
    plant(tmp_path, file, text)
    assert check_python(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("core/a.h", "#include <torch/extension.h>", "never includes torch"),
        ("bindings/a.cpp", "#include <ATen/ATen.h>", "never includes torch"),
        ("core/a.h", "#include <Python.h>", "only csrc/bindings knows Python"),
        ("assign/a.cpp", "#include <pybind11/pybind11.h>", "only csrc/bindings knows Python"),
        ("core/a.h", '#include "assign/b.h"', "includes point down only"),
        ("assign/a.h", '#include "nearest_centroid/b.h"', "includes point down only"),
        ("lloyd_step/a.h", '#include "patch_tokens/b.h"', "stand on one row"),
        ("lloyd_step/a.h", '#include "bindings/b.h"', "includes point down only"),
        ("core/a.h", '#include "missing.h"', "write it as"),
    ],
)
def test_sees_cpp_violations(tmp_path: Path, file: str, text: str, problem: str) -> None:
    plant(tmp_path, file, text)
    (found,) = check_cpp(tmp_path)
    assert problem in found
    assert f"csrc/{file}:1" in found


def test_sees_shared_functions_in_an_isa_unit(tmp_path: Path) -> None:
    plant(tmp_path, "assign/filter_avx2.cpp", '#include "assign/body.h"\n')
    plant(
        tmp_path, "assign/body.h", '#include "core/helper.h"\nnamespace { int f() { return 1; } }'
    )
    plant(tmp_path, "core/helper.h", "inline int helper() { return 2; }")
    (found,) = check_cpp(tmp_path)
    assert "filter_avx2.cpp" in found
    assert "core/helper.h" in found


def test_allows_bindings_their_includes(tmp_path: Path) -> None:
    plant(tmp_path, "core/a.h", "")
    text = '#include <pybind11/pybind11.h>\n#include "core/a.h"\n#include "assign/b.h"\n'
    plant(tmp_path, "bindings/module.cpp", text)
    assert check_cpp(tmp_path) == []
