"""``info`` says what is there and why the rest is not."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clustermim_fast
from clustermim_fast.info import info
from clustermim_fast.ops import _choice, _triton

OPS = {
    "lloyd_step",
    "masked_cross_entropy",
    "masked_linear_cross_entropy",
    "nearest_centroid",
    "patch_tokens",
    "replace_patches",
    "resized_crop",
}

ABSENT = "this release has no such back-end for this op"
NO_DEVICE = "no CUDA device is visible"


def fresh_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | environment,
    )


def test_facts() -> None:
    facts = info()
    assert facts.version == clustermim_fast.__version__
    assert facts.torch == str(torch.__version__)
    assert facts.threads == torch.get_num_threads()
    assert facts.core_error is None
    assert facts.core is not None
    assert facts.core["isa_paths"][facts.core["isa"]] == "usable"
    assert facts.core["isa_paths"]["generic"] == "usable"


def test_every_op_has_an_answer_for_every_backend() -> None:
    backends = info().backends
    assert set(backends) == OPS
    for reasons in backends.values():
        assert list(reasons) == ["reference", "cpu", "triton", "cuda"]
        assert reasons["reference"] is None
        assert reasons["cpu"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA is told")
def test_unavailable_backends_say_why() -> None:
    for op, reasons in info().backends.items():
        assert reasons["triton"] == (ABSENT if op == "resized_crop" else NO_DEVICE)
        # A machine without a GPU may still have the driver's library.
        assert reasons["cuda"] in (ABSENT, "no CUDA driver", NO_DEVICE)


def test_cuda_kernels_that_no_gpu_has_run_say_so(monkeypatch) -> None:
    op = importlib.import_module("clustermim_fast.ops.nearest_centroid.op")
    monkeypatch.setattr(op, "IMPLEMENTED", ("reference", "cpu", "triton", "cuda"))
    facts = info()
    assert "CUDA C++ for Hopper" in str(facts)
    ran = dataclasses.replace(facts, gpu_runs={"nearest_centroid": {"sm_90": ("cuda", "triton")}})
    assert "CUDA C++ for Hopper" not in str(ran)
    if not torch.cuda.is_available():
        assert facts.backends["nearest_centroid"]["cuda"] in ("no CUDA driver", NO_DEVICE)


def test_printed_page() -> None:
    result = fresh_process("-m", "clustermim_fast.info")
    assert result.returncode == 0, result.stderr
    for expected in (clustermim_fast.__version__, "ISA path", "CUDA  ", "nearest_centroid"):
        assert expected in result.stdout


def test_kernels_that_no_gpu_has_run_say_so(monkeypatch) -> None:
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {})
    assert "no GPU has run our kernels" in str(info())
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {"lloyd_step": {"sm_90": ("cuda", "triton")}})
    page = str(info())
    assert "no GPU has run our kernels" not in page
    assert "lloyd_step (sm_90: cuda, triton)" in page


def test_what_serves_each_op_on_a_gpu_is_shown(monkeypatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    h200 = _triton.Device("sm_90", 90, 132, 232_448)
    for name, answer in (("is_available", True), ("device_count", 1), ("get_device_name", "H200")):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(_triton, "properties", lambda device: h200)
    ops = ("lloyd_step", "lloyd_step_images", "patch_tokens")
    problems = zip(ops, ("", "3 ids differ", ""), strict=True)
    checked = {(op, "cuda:0", "triton"): problem for op, problem in problems}
    monkeypatch.setattr(_choice, "_verdicts", checked)
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {"replace_patches": {"sm_90": ("triton",)}})
    page = str(info())
    assert "cuda:0 H200" in page
    for line in (
        "on cuda:0, unless another is named:",
        "    patch_tokens, lloyd_step: triton: agreed with plain torch here",
        "    lloyd_step_images: plain torch: 3 ids differ",
        "    replace_patches: triton: such GPUs have run it in our hands",
        "    nearest_centroid, masked_cross_entropy, masked_linear_cross_entropy: triton, once it",
    ):
        assert line in page, page


def test_forced_isa_is_shown() -> None:
    result = fresh_process("-m", "clustermim_fast.info", CLUSTERMIM_ISA="generic")
    assert result.returncode == 0, result.stderr
    assert "ISA path    generic" in result.stdout
    assert "CLUSTERMIM_ISA=generic" in result.stdout


def test_works_without_torch_and_without_the_core() -> None:
    hide = (
        "import sys; sys.modules['torch'] = None; sys.modules['clustermim_fast._core'] = None\n"
        "from clustermim_fast.info import info; print(info())"
    )
    result = fresh_process("-c", hide)
    assert result.returncode == 0, result.stderr
    assert "torch       not available" in result.stdout
    assert "core        not available" in result.stdout
    assert "make core" in result.stdout


def test_without_the_core_an_op_says_what_hides_it() -> None:
    """Whoever ran ``pip install .`` and starts Python in the clone imports the clone."""
    call = (
        "import sys; sys.modules['clustermim_fast._core'] = None\n"
        "import torch; from clustermim_fast import ops\n"
        "ops.nearest_centroid(torch.zeros(4, 2), torch.zeros(3, 2))"
    )
    result = fresh_process("-c", call)
    package = Path(clustermim_fast.__file__).parent
    if (package.parent / "CMakeLists.txt").is_file():
        remedy = f"{package} is a checkout's and hides an installed package: start Python in "
        remedy += "another folder, or run `make core` here"
    else:
        remedy = "reinstall with `pip install .`"
    assert remedy in result.stderr, result.stderr
