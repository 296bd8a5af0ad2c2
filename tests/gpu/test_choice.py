"""Which GPU back-end ``auto`` takes, and when kernels are checked first."""

from __future__ import annotations

import logging

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend, _choice, _self_checks, _triton

OP = "replace_patches"
H200 = _triton.Device("sm_90", 90, 132, 232_448)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setattr(_choice, "_verdicts", {})
    monkeypatch.setattr(_choice, "_said", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def checks(monkeypatch, outcome=None):
    """Replace the check of OP; returns the list of devices it is asked for."""
    asked = []

    def check(device):
        asked.append(str(device))
        if outcome is not None:
            raise outcome

    monkeypatch.setitem(_self_checks.CHECKS, OP, check)
    return asked


def choose(compiling=False, usable=("triton",)):
    with _triton.stand_in(H200):
        return _choice.fastest(OP, "cpu", usable, compiling)


def test_checked_once_and_remembered_by_the_next_process(monkeypatch):
    asked = checks(monkeypatch)
    assert [choose(), choose()] == ["triton", "triton"]
    assert asked == ["cpu"]
    monkeypatch.setattr(_choice, "_verdicts", {})  # a new process
    assert choose() == "triton"
    assert asked == ["cpu"]


def test_another_version_is_checked_again(monkeypatch):
    asked = checks(monkeypatch)
    choose()
    monkeypatch.setattr(_choice, "_verdicts", {})
    monkeypatch.setattr(_choice, "__version__", "99")
    choose()
    assert asked == ["cpu", "cpu"]


def test_a_failed_check_means_the_reference_and_one_line(monkeypatch, caplog):
    asked = checks(monkeypatch, AssertionError("3 of 9 ids differ"))
    with caplog.at_level(logging.WARNING, "clustermim_fast"):
        assert [choose(), choose()] == ["reference", "reference"]
    assert asked == ["cpu"]
    assert len(caplog.records) == 1
    assert "3 of 9 ids differ" in caplog.text


def test_nothing_is_checked_while_torch_compiles(monkeypatch, caplog):
    asked = checks(monkeypatch)
    with caplog.at_level(logging.WARNING, "clustermim_fast"):
        assert choose(compiling=True) == "reference"
    assert "ops.warmup()" in caplog.text
    assert asked == []
    assert choose() == "triton"
    assert choose(compiling=True) == "triton"


def test_a_recorded_run_needs_no_check(monkeypatch):
    asked = checks(monkeypatch, AssertionError)
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {OP: {"sm_90": ("cuda", "triton")}})
    assert choose() == "triton"  # cuda cannot run here
    assert choose(usable=("cuda", "triton")) == "cuda"
    assert asked == []


def test_without_a_kernel_the_reference_says_why(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "clustermim_fast"):
        assert choose(usable=()) == "reference"
    assert len(caplog.records) == 1


def test_old_gpus_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_triton, "properties", lambda d: _triton.Device("sm_75", 75, 40, 65_536))
    reason = _triton.unavailable_reason(torch.device("cuda:0"))
    assert "8.0 or newer" in reason
    assert "sm_75" in reason


def test_compiled_code_calls_the_choice_and_does_not_trace_it(monkeypatch):
    checks(monkeypatch)
    choose()

    def double_on_triton(x):
        return x * (2 if _choice.fastest(OP, "cpu", ("triton",), True) == "triton" else 3)

    with _triton.stand_in(H200):
        compiled = torch.compile(double_on_triton, fullgraph=True, backend="eager")
        assert compiled(torch.ones(1)) == 2


def test_naming_triton_on_the_cpu_says_what_is_needed():
    if _triton.interpreted():
        pytest.skip("Triton: interpreted, so the CPU will do")
    reasons = _backend.availability(torch.device("cpu"), ("reference", "cpu", "triton"))
    assert "CUDA tensors" in reasons["triton"]


def test_warmup_names_the_cpu_back_ends():
    assert set(ops.warmup("cpu").values()) == {"cpu"}
