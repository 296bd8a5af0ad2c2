"""Which GPU back-end ``auto`` takes, and when kernels are checked first."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clustermim_fast import ops
from clustermim_fast.ops import (
    _backend,
    _choice,
    _cuda,
    _nvrtc,
    _self_checks,
    _triton,
    _user_cache,
)
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_linear_cross_entropy.problem import refused_by_cuda

OP = "replace_patches"
H200 = _triton.Device("sm_90", 90, 132, 232_448)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setattr(_choice, "_verdicts", {})
    monkeypatch.setattr(_choice, "_said", set())
    monkeypatch.setattr(_backend, "_settled", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def checks(monkeypatch, outcome=None):
    """Replace the check of OP; returns the list of devices and back-ends it is asked for."""
    asked = []

    def check(device, backend):
        asked.append(f"{device} {backend}")
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
    assert asked == ["cpu triton"]
    monkeypatch.setattr(_choice, "_verdicts", {})  # a new process
    assert choose() == "triton"
    assert asked == ["cpu triton"]


def test_another_version_is_checked_again(monkeypatch):
    asked = checks(monkeypatch)
    choose()
    monkeypatch.setattr(_choice, "_verdicts", {})
    monkeypatch.setattr(_choice, "__version__", "99")
    choose()
    assert asked == ["cpu triton", "cpu triton"]


def test_a_failed_check_means_the_reference_and_one_line(monkeypatch, caplog):
    asked = checks(monkeypatch, AssertionError("3 of 9 ids differ"))
    with caplog.at_level(logging.WARNING, "clustermim_fast"):
        assert [choose(), choose()] == ["reference", "reference"]
    assert asked == ["cpu triton"]
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


def test_a_graph_that_cannot_hold_the_reference_is_an_error(monkeypatch):
    """torch's own would say that the stream is capturing, and not what to do."""
    asked = checks(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        RuntimeError, match=rf"{OP}: .* in a CUDA graph must .* call ops\.warmup\(\) before"
    ):
        choose()
    with _triton.stand_in(H200):  # plain torch's losses can be captured
        assert _choice.fastest("masked_cross_entropy", "cpu", ("triton",), False) == "reference"
    assert asked == []
    monkeypatch.setattr(_choice, "_verdicts", {(OP, "cpu", "triton"): ""})
    assert choose() == "triton"


@pytest.mark.parametrize("lost", [True, False])
def test_a_check_that_ends_the_device_says_so(monkeypatch, lost):
    """Nothing can serve after an illegal address; after any other error plain torch does."""
    checks(monkeypatch, RuntimeError("an illegal memory access was encountered"))

    def synchronize(device):
        if lost:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    if lost:
        with pytest.raises(
            RuntimeError, match=r"cuda:0 usable, got .*CLUSTERMIM_BACKEND=reference"
        ):
            _choice._check(OP, "cuda:0", "triton")
    else:
        assert "failed their check" in _choice._check(OP, "cuda:0", "triton")


def test_a_recorded_run_needs_no_check(monkeypatch):
    asked = checks(monkeypatch, AssertionError)
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {OP: {"sm_90": ("cuda", "triton")}})
    assert choose() == "triton"  # cuda cannot run here
    assert asked == []


BOTH = ("cuda", "triton")


def test_cuda_serves_after_a_recorded_run_alone(monkeypatch):
    asked = checks(monkeypatch)
    assert [choose(usable=BOTH), choose(usable=("cuda",))] == ["triton", "reference"]
    assert asked == ["cpu triton"]
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {OP: {"sm_100": BOTH}})  # of another GPU
    assert choose(usable=BOTH) == "triton"
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {OP: {"sm_90": BOTH}})
    assert [choose(usable=BOTH), choose(usable=BOTH)] == ["cuda", "cuda"]
    assert asked == ["cpu triton", "cpu cuda"]


def test_recorded_cuda_is_checked_first(monkeypatch, caplog):
    asked = checks(monkeypatch, AssertionError("3 of 9 ids differ"))
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {OP: {"sm_90": BOTH}})
    with _triton.stand_in(H200):
        assert "cuda: such GPUs" in _choice.standing(OP, "cpu", BOTH)
    with caplog.at_level(logging.WARNING, "clustermim_fast"):
        assert choose(compiling=True, usable=BOTH) == "triton"
        assert caplog.text == ""
        assert choose(usable=BOTH) == "triton"
    assert "its CUDA kernels failed their check: AssertionError: 3 of 9" in caplog.text
    assert asked == ["cpu cuda"]
    with _triton.stand_in(H200):
        assert "triton: such GPUs" in _choice.standing(OP, "cpu", BOTH)


NAMES = ("reference", "cpu", "triton", "cuda")


@pytest.fixture
def hopper(monkeypatch):
    """cuda:0 is an H200 on which every back-end can run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    monkeypatch.setattr(_triton, "properties", lambda device: H200)
    monkeypatch.setattr(_cuda, "unavailable_reason", lambda device: None)
    return torch.device("cuda:0")


def test_cuda_that_is_named_has_to_agree_with_the_reference(monkeypatch, hopper):
    asked = checks(monkeypatch, AssertionError("3 of 9 ids differ"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'cuda' is not available on cuda:0: .*3 of 9 ids"):
            _backend.resolve(OP, "cuda", hopper, NAMES)
    assert asked == ["cuda:0 cuda"]
    monkeypatch.setattr(_choice, "_verdicts", {})
    asked = checks(monkeypatch)
    assert [_backend.resolve(OP, "cuda", hopper, NAMES) for _ in range(2)] == ["cuda", "cuda"]
    assert asked == ["cuda:0 cuda"]


def test_named_cuda_cannot_be_checked_in_a_compiler_or_a_graph(monkeypatch, hopper):
    asked = checks(monkeypatch, AssertionError)
    assert _backend._on_gpu(OP, "cuda", "cuda:0", NAMES, True) == "cuda"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert _backend.resolve(OP, "cuda", hopper, NAMES) == "cuda"
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(RuntimeError, match="failed their check"):
        _backend.resolve(OP, "cuda", hopper, NAMES)


def test_a_check_of_cuda_does_not_wait_for_itself(monkeypatch, hopper):
    checks_begun = []

    def check(device, backend):
        checks_begun.append(backend)
        assert len(checks_begun) == 1
        assert _backend.resolve(OP, backend, device, NAMES) == "cuda"
        raise AssertionError("3 of 9 ids differ")

    monkeypatch.setitem(_self_checks.CHECKS, OP, check)
    for _ in range(2):  # what the check used is not settled by it
        with pytest.raises(RuntimeError, match="3 of 9 ids differ"):
            _backend.resolve(OP, "cuda", hopper, NAMES)


def test_a_verdict_on_cuda_belongs_to_its_sources(monkeypatch, hopper, tmp_path):
    before = _choice._identity(OP, "cuda:0", "cuda")
    assert before != _choice._identity(OP, "cuda:0", "triton")
    monkeypatch.setattr(_nvrtc, "KERNELS", tmp_path)
    (tmp_path / "another.cu").write_text("// another kernel")
    changed = _choice._identity(OP, "cuda:0", "cuda")
    assert before != changed
    monkeypatch.setattr(_nvrtc, "compiler", lambda: _nvrtc.Compiler("", (14, 0)))
    assert changed != _choice._identity(OP, "cuda:0", "cuda")


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
        return x * (2 if _backend._on_gpu(OP, None, "cpu", ("triton",), True) == "triton" else 3)

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


def test_the_check_is_out_of_reach_of_the_caller_s_modes(monkeypatch):
    """Each of these alone would make it fail, for the life of the process."""
    seen = []

    def check(device, backend):
        leaf = torch.randn(3, 3, generator=torch.Generator()).requires_grad_()
        grad = torch.autograd.grad((leaf @ leaf).sum(), leaf)[0]
        seen.append((grad.dtype, type(grad), float(grad.sum()), ops._stats.recording()))
        assert not torch.are_deterministic_algorithms_enabled()

    monkeypatch.setitem(_self_checks.CHECKS, OP, check)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    try:
        with (
            torch.inference_mode(), torch.device("meta"), FakeTensorMode(),
            torch.autocast("cpu", torch.bfloat16), ops.record_stats(),
        ):  # fmt: skip
            assert choose() == "triton"
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
    ((dtype, kind, _, recording),) = seen
    assert (dtype, kind, recording) == (torch.float32, torch.Tensor, False)


def test_a_check_without_memory_is_made_another_time(monkeypatch):
    checks(monkeypatch, torch.cuda.OutOfMemoryError("full"))
    assert choose() == "reference"
    asked = checks(monkeypatch)
    assert choose() == "triton"
    assert asked == ["cpu triton"]


@pytest.mark.parametrize("content", ["", "{", "[[1], 2, null]", '{"a": 1}', b"\xff\xfe"])
def test_a_damaged_cache_is_an_empty_one(monkeypatch, content):
    asked = checks(monkeypatch)
    file = _user_cache.file(_choice.PASSED)
    file.parent.mkdir(parents=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert choose() == "triton"
    monkeypatch.setattr(_choice, "_verdicts", {})
    assert choose() == "triton"
    assert asked == ["cpu triton"]
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_a_home_that_is_missing_or_cannot_be_written_costs_a_check(monkeypatch, tmp_path):
    asked = checks(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder cannot be made in it
    assert choose() == "triton"
    monkeypatch.setattr(_choice, "_verdicts", {})

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    assert choose() == "triton"
    assert asked == ["cpu triton", "cpu triton"]


def test_processes_that_finish_at_once_leave_a_whole_cache(monkeypatch):
    monkeypatch.setattr(_choice, "_identity", lambda op, device, backend: op * 1000)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: _choice._remember(f"op {i % 8} ", "cpu", "triton"), range(200)))
    file = _user_cache.file(_choice.PASSED)
    assert set(json.loads(file.read_text())) <= {f"op {i} " * 1000 for i in range(8)}
    assert len(_choice._passed()) >= 1
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_a_triton_that_cannot_be_imported_is_a_reason(monkeypatch):
    def broken(name):
        raise OSError("libtriton.so: undefined symbol")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_triton.importlib, "import_module", broken)
    _triton._import_error.cache_clear()
    try:
        assert "undefined symbol" in _triton.unavailable_reason(torch.device("cuda:0"))
    finally:
        _triton._import_error.cache_clear()


def test_amd_s_gpus_are_named_as_they_name_themselves(monkeypatch):
    found = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-", multi_processor_count=304)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    device = torch.device("cuda:0")
    assert _triton.properties(device) == _triton.Device("gfx942", 0, 304, 65_536)
    assert _triton.unavailable_reason(device) is None


def test_other_devices_are_told_what_to_do():
    with pytest.raises(RuntimeError, match="mps tensors; move them to the CPU or a CUDA device"):
        _backend.resolve(OP, None, torch.device("mps"), ("reference", "cpu", "triton"))


def test_a_named_back_end_is_not_checked_and_an_old_gpu_refuses_it(monkeypatch):
    asked = checks(monkeypatch, AssertionError)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(_triton, "properties", lambda d: H200)
    names, device = ("reference", "cpu", "triton"), torch.device("cuda:0")
    assert _backend.resolve(OP, "triton", device, names) == "triton"
    assert _backend.resolve(OP, "reference", device, names) == "reference"
    assert asked == []
    monkeypatch.setattr(_backend, "_settled", {})
    monkeypatch.setattr(_triton, "properties", lambda d: _triton.Device("sm_75", 75, 40, 65_536))
    with pytest.raises(RuntimeError, match=r"8\.0 or newer.*available here: reference"):
        _backend.resolve(OP, "triton", device, names)
    assert _backend.resolve(OP, None, device, names) == "reference"


def test_what_is_settled_is_not_looked_up_again(monkeypatch):
    """A look at packages and devices would cost every call more than a launch does."""
    checks(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    monkeypatch.setattr(_triton, "properties", lambda d: H200)
    device = torch.device("cuda:0")
    assert _backend.resolve(OP, None, device, ("reference", "triton")) == "triton"
    monkeypatch.setattr(_triton, "unavailable_reason", None)
    assert _backend.resolve(OP, None, device, ("reference", "triton")) == "triton"


def test_what_is_settled_is_so_for_these_back_ends(monkeypatch, hopper):
    """A call that CUDA C++ does not take asks again without it."""
    checks(monkeypatch)
    monkeypatch.setattr(_triton, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {OP: {"sm_90": BOTH}})
    for _ in range(2):
        assert _backend.resolve(OP, None, hopper, NAMES) == "cuda"
        assert _backend.resolve(OP, None, hopper, NAMES[:-1]) == "triton"


def test_a_call_that_cuda_does_not_take_is_left_to_triton_unless_it_is_named(monkeypatch, hopper):
    checks(monkeypatch)
    monkeypatch.setattr(_triton, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {OP: {"sm_90": BOTH}})

    def refused():
        return "x", 'narrow for backend "cuda"', 9

    assert _backend.resolve_call(OP, None, hopper, NAMES, lambda: None) == "cuda"
    assert _backend.resolve_call(OP, None, hopper, NAMES, refused) == "triton"
    assert _backend.resolve_call(OP, "triton", hopper, NAMES, refused) == "triton"
    message = 'x must be narrow for backend "cuda", got 9; pass backend="triton"'
    with pytest.raises(ValueError, match=message):
        _backend.resolve_call(OP, "cuda", hopper, NAMES, refused)
    with _backend.use_backend("cuda"), pytest.raises(ValueError, match=message):
        _backend.resolve_call(OP, None, hopper, NAMES, refused)


def test_the_linear_loss_leaves_float64_to_the_reference(monkeypatch, hopper):
    """And what CUDA C++ does not take to Triton."""
    name = "masked_linear_cross_entropy"
    monkeypatch.setitem(_self_checks.CHECKS, name, lambda device, backend: None)
    monkeypatch.setattr(_triton, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(_choice, "RECORDED_RUNS", {name: {"sm_90": BOTH}})

    def chosen(dtype, classes=9):
        x, w = torch.zeros(2, 5, 16, dtype=dtype), torch.zeros(classes, 16, dtype=dtype)
        return arguments.choose_backend(
            name, None, hopper, NAMES, lambda: refused_by_cuda(x, w), input=x, linear_weight=w
        )

    assert chosen(torch.bfloat16) == "cuda"
    assert chosen(torch.bfloat16, classes=129) == "triton"
    assert chosen(torch.float32) == "triton"
    assert chosen(torch.float64) == "reference"


def test_standing_is_said_without_a_check(monkeypatch):
    asked = checks(monkeypatch)
    with _triton.stand_in(H200):
        assert "once it agrees" in _choice.standing(OP, "cpu", ("triton",))
        assert _choice.standing(OP, "cpu", ()) == "plain torch"
        assert asked == []
        choose()
        assert _choice.standing(OP, "cpu", ("triton",)) == "triton: agreed with plain torch here"
        monkeypatch.setattr(_choice, "_verdicts", {(OP, "cpu", "triton"): "3 ids differ"})
        assert _choice.standing(OP, "cpu", ("triton",)) == "plain torch: 3 ids differ"
        monkeypatch.setattr(_choice, "RECORDED_RUNS", {OP: {"sm_90": ("triton",)}})
        assert "in our hands" in _choice.standing(OP, "cpu", ("triton",))
