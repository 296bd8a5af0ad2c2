"""The standard checks of an op, and the ways of running one: reference, every CPU path, Triton.

Triton has runs of its own: with TRITON_INTERPRET=1 its kernels are interpreted
(tests/gpu/strict.py), with CLUSTERMIM_TEST_DEVICE=cuda they run on a GPU; the CPU paths stay out of
those. With CLUSTERMIM_TEST_CUDA beside it, "cuda" takes the place of "triton": "device" on a GPU,
"emulated" where Triton is interpreted (tests/gpu/emulated.py).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clustermim_fast.ops import _backend, _cuda, _triton

REPOSITORY = Path(__file__).resolve().parents[2]
GPU = os.environ.get("CLUSTERMIM_TEST_DEVICE", "")
ON_TRITON = _triton.interpreted() or bool(GPU)
CPU_PATHS: tuple[str, ...] = (
    ("generic", "avx2", "avx512")  # without the core: names for the tests that are then skipped
    if _backend.core_unavailable_reason()
    else tuple(_backend.core().build_info()["isa_paths"])
)
ON_CUDA = ON_TRITON and os.environ.get("CLUSTERMIM_TEST_CUDA") == ("device" if GPU else "emulated")
GPU_PATH = "cuda" if ON_CUDA else "triton"
PATHS = ("reference", GPU_PATH) if ON_TRITON else ("reference", *CPU_PATHS)
# A case with more block operations than this takes too long to interpret: some 200 turns of a
# kernel's loop, in all its programs.
MOST_OPERATIONS = 4000
METRICS = ("euclidean", "cosine", "dot")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def fewer(usual: int, interpreted: int) -> int:
    """A size of a case, and a smaller one that Triton's interpreter ends with, in seconds."""
    return interpreted if _triton.interpreted() else usual


every_path = pytest.mark.parametrize("path", PATHS)
every_cpu_path = pytest.mark.parametrize("path", CPU_PATHS)
every_metric = pytest.mark.parametrize("metric", METRICS)


@contextmanager
def running(path: str) -> Iterator[str]:
    """Run on one of :data:`PATHS`; yields the back-end's name. Skips what this machine lacks."""
    if path == "reference":
        yield "reference"
        return
    if path == "triton":
        with _running_triton():
            yield "triton"
        return
    if path == "cuda":
        with _running_triton(), _running_cuda():
            yield "cuda"
        return
    reason = _backend.core_unavailable_reason()
    if reason:
        pytest.skip(reason)
    core = _backend.core()
    usable = core.build_info()["isa_paths"][path]
    if usable != "usable":
        pytest.skip(f"ISA path {path}: {usable}")
    core.set_isa(name=path)
    try:
        yield "cpu"
    finally:
        core.set_isa(name="auto")


@contextmanager
def _running_triton() -> Iterator[None]:
    """Interpreted and strict, or on the GPU with CPU tensors moved there and back."""
    if GPU:
        with OnDevice(GPU), _triton.stand_in(_triton.properties(torch.device(GPU))):
            yield
        return
    if not _triton.interpreted():
        pytest.skip("Triton: has a run of its own (make check-triton)")
    from tests.gpu import strict

    try:
        with strict.checked(most_operations=MOST_OPERATIONS):
            yield
    except Exception as error:
        cause: BaseException | None = error
        while cause:  # each function that a kernel calls wraps it once more
            if isinstance(cause, strict.TooLongToInterpret):
                pytest.skip("Triton: left to a GPU, too long to interpret")
            cause = cause.__cause__ or cause.__context__
        raise


@contextmanager
def _running_cuda() -> Iterator[None]:
    from tests.gpu import emulated

    resolve = _backend.resolve

    def of_the_op(op: str, backend: Any, device: Any, implemented: Sequence[str]) -> str:
        """Ops without CUDA C++, beside one that has it, run on Triton."""
        if _backend.named(backend) == "cuda" and "cuda" not in implemented:
            backend = "triton"
        return resolve(op, backend, device, tuple(implemented))

    there = mock.patch.object(_cuda, "unavailable_reason", emulated.available)
    try:
        with (
            there if GPU else emulated.running(),
            mock.patch.object(_backend, "resolve", of_the_op),
        ):
            yield
    except (TypeError, ValueError) as error:
        if 'for backend "cuda"' not in str(error):
            raise
        pytest.skip("CUDA C++: leaves such calls to Triton")


class OnDevice(TorchDispatchMode):
    """Runs ops whose kernels are asked for on a device; tensors move as they lie."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "clustermim" or args[-1] not in ("triton", "cuda"):
            return func(*args, **(kwargs or {}))
        there = [self._moved(a) if isinstance(a, torch.Tensor) else a for a in args]
        out = func(*there)
        return out.cpu() if isinstance(out, torch.Tensor) else tuple(o.cpu() for o in out)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """The whole storage, so that strides and offsets are what the test made them."""
        bytes_ = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        storage = bytes_.to(self.device).untyped_storage()
        empty = torch.empty(0, dtype=tensor.dtype, device=self.device)
        return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def projecting(when: str) -> Iterator[None]:
    """The core's filter in a subspace: ``always`` where sizes allow it, ``never``, or ``auto``."""
    _backend.core().set_projection(when=when)
    try:
        yield
    finally:
        _backend.core().set_projection(when="auto")


def usable_paths() -> list[str]:
    """The reference and every CPU path of this machine (an error without the compiled core), or
    the reference and Triton in its own runs.
    """
    if ON_TRITON:
        return list(PATHS)
    paths = _backend.core().build_info()["isa_paths"]
    return ["reference", *(name for name in CPU_PATHS if paths[name] == "usable")]


def flat(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same dtype, shape and bits (NaN equal to NaN, 0 not equal to -0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.contiguous().view(-1), b.contiguous().view(-1)
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def assert_same(result: Any, expected: Any) -> None:
    for a, b in zip(flat(result), flat(expected), strict=True):
        assert same(a, b), f"{a.dtype} {tuple(a.shape)} differs from {b.dtype} {tuple(b.shape)}"


def check_opcheck(overload: Any, *args: Any) -> None:
    """All four tests of ``torch.library.opcheck``."""
    tests = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_dynamic",
    )
    assert set(torch.library.opcheck(overload, args, test_utils=tests).values()) == {"SUCCESS"}


def check_compile(call: Callable[..., Any], *args: Any, compiler: str = "aot_eager") -> None:
    """``torch.compile(fullgraph=True)`` equals eager; a second call does not recompile."""
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    assert_same(compiled(*args), call(*args))
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))


def check_threads(
    set_threads: Callable[[int], None], call: Callable[[], Any], counts: Sequence[int] = (1, 2, 3)
) -> None:
    """The same bits at every thread count."""
    results = []
    for count in counts:
        set_threads(count)
        results.append(call())
    for other in results[1:]:
        assert_same(other, results[0])


def check_refusal(call: Callable[[], Any], error: type[Exception], *words: str) -> None:
    """``call`` raises ``error`` with a message that holds all ``words``."""
    with pytest.raises(error) as caught:
        call()
    missing = [w for w in words if w not in str(caught.value)]
    assert not missing, f"{missing} not in {str(caught.value)!r}"


_GUARDED: list[mmap.mmap] = []  # memory of `guarded` stays for good


def guarded(tensor: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A copy that ends (or begins) at a page which nobody may touch, for code that runs alone: a
    read or write beyond it ends the process. Needs Linux."""
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    if size == 0:
        return tensor
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    _GUARDED.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (0, pages + 1):
        assert libc.mprotect(ctypes.c_void_p(base + guard * page), page, 0) == 0
    begin = page * (pages + 1) - size if at_end else page
    flat = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=begin)
    out = flat.view(tensor.dtype).view(tensor.shape)
    out.copy_(tensor)
    return out


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a fresh interpreter that imports the same package as this one."""
    package_parent = str(Path(_backend.__file__).resolve().parents[2])
    path = os.pathsep.join([package_parent, str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
