"""nearest_centroid from several threads and processes, and the choice of its back-end."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend
from tests.ops.harness import check_refusal, run_python, running


def data(n: int = 500, d: int = 48, k: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, d), torch.randn(k, d)


# ---- threads and processes


def test_several_python_threads(threads):
    threads(2)
    inputs = [data(n=2000, k=20 + i) for i in range(4)]
    expected = [ops.nearest_centroid(x, c, backend="cpu") for x, c in inputs]
    right: list[bool] = []

    def work(i: int) -> None:
        ids = (ops.nearest_centroid(*inputs[i], backend="cpu") for _ in range(10))
        right.extend(torch.equal(a, expected[i]) for a in ids)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert right == [True] * 40


def test_threads_are_torchs_where_it_has_openmp(threads):
    """The same ids on torch's OpenMP threads as on our own; torch says whether it has any."""
    threads(2)
    x, c = data(n=5000)
    share = _backend.core().share_threads
    try:
        assert share(library="") is False
        expected = ops.nearest_centroid(x, c, backend="cpu")
        shared = _backend.share_threads()
        assert shared == ("backend: OpenMP" in torch.__config__.parallel_info())
        assert torch.equal(ops.nearest_centroid(x, c, backend="cpu"), expected)
    finally:
        _backend.share_threads()


def test_the_interpreter_lock_is_released():
    """Another Python thread makes progress while one call runs (on the slowest path)."""
    x, c = data(n=200_000, k=1000)
    done = threading.Event()
    worker = threading.Thread(
        target=lambda: (ops.nearest_centroid(x, c, backend="cpu"), done.set())
    )
    ticks = 0
    with running("generic"):
        worker.start()
        while not done.wait(0.001):
            ticks += 1
        worker.join()
    assert ticks >= 2


FORK = """
import os, signal, sys, threading, torch
from clustermim_fast import ops
torch.set_num_threads(2)
torch.manual_seed(0)
x, c = torch.randn(5000, 48), torch.randn(50, 48)
expected = ops.nearest_centroid(x, c, backend="cpu")  # the parent's pool has run
def work():
    for _ in range(50):
        ops.nearest_centroid(x, c, backend="cpu")
busy = threading.Thread(target=work)
busy.start()  # and runs while the process forks
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        signal.alarm(200)  # a hung child dies
        torch.set_num_threads(2)
        os._exit(0 if torch.equal(ops.nearest_centroid(x, c, backend="cpu"), expected) else 1)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
busy.join()
ok = torch.equal(ops.nearest_centroid(x, c, backend="cpu"), expected)
print(statuses, ok)
sys.exit(any(statuses) or not ok)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_children():
    """A child has none of the parent's threads; an OpenMP pool would hang here."""
    done = run_python(FORK)
    assert done.returncode == 0, done.stdout + done.stderr


class _TokenSet(torch.utils.data.Dataset):
    def __init__(self, x: torch.Tensor, c: torch.Tensor) -> None:
        self.x, self.c = x, c

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> torch.Tensor:
        return ops.nearest_centroid(self.x[i], self.c, backend="cpu")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_dataloader_workers():
    x, c = torch.randn(6, 500, 48), torch.randn(50, 48)
    expected = ops.nearest_centroid(x, c, backend="cpu")
    loader = torch.utils.data.DataLoader(
        _TokenSet(x, c), batch_size=2, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    assert torch.equal(torch.cat(list(loader)), expected)


# ---- choosing the back-end


def test_backend_is_chosen_by_device_and_can_be_forced(monkeypatch):
    x, c = data(n=10)
    ran = []
    for name in ("reference", "cpu", None):
        with ops.use_backend(name), ops.record_stats():
            ops.nearest_centroid(x, c)
            # The reference has no filter: its rows count as float64 or exact.
            ran.append("cpu" if ops.assignment_stats().filter else "reference")
    assert ran == ["reference", "cpu", "cpu"]
    with ops.use_backend("reference"), ops.use_backend("cpu"), ops.record_stats():
        ops.nearest_centroid(x, c, backend="reference")  # the argument wins
        assert ops.assignment_stats().filter == 0


def test_backends_that_cannot_run_say_why():
    x, c = data(n=4)
    for name in ("cuda", "triton"):
        check_refusal(
            lambda name=name: ops.nearest_centroid(x, c, backend=name),
            RuntimeError,
            "nearest_centroid",
            name,
            "not available",
            "cpu",
        )
    check_refusal(
        lambda: ops.nearest_centroid(x, c, backend="gpu"),
        ValueError,
        "backend",
        "reference",
        "'gpu'",
    )
    check_refusal(lambda: ops.use_backend("gpu").__enter__(), ValueError, "'gpu'", "triton")
    check_refusal(
        lambda: ops.nearest_centroid(x.to("meta"), c.to("meta"), backend="cpu"),
        RuntimeError,
        "needs CPU tensors",
        "meta",
    )
    with ops.use_backend("cuda"):
        check_refusal(lambda: ops.nearest_centroid(x, c), RuntimeError, "cuda")


def test_environment_variables():
    show = (
        "import torch\nfrom clustermim_fast import ops\nwith ops.record_stats():\n"
        "    ops.nearest_centroid(torch.randn(9, 4), torch.randn(3, 4))\n"
        "print(ops.assignment_stats().filter)"
    )
    assert run_python(show, CLUSTERMIM_BACKEND="reference").stdout.strip() == "0"
    assert int(run_python(show, CLUSTERMIM_BACKEND="cpu").stdout) > 0
    bad = run_python("import clustermim_fast.ops", CLUSTERMIM_BACKEND="fast")
    assert bad.returncode != 0
    assert "CLUSTERMIM_BACKEND must be one of reference, cpu" in bad.stderr


def test_isa_environment_variable():
    show = "from clustermim_fast import _core; print(_core.build_info()['isa'])"
    assert run_python(show, CLUSTERMIM_ISA="generic").stdout.strip() == "generic"
    bad = run_python("import clustermim_fast._core", CLUSTERMIM_ISA="sse9")
    assert bad.returncode != 0
    assert "auto, generic, avx2" in bad.stderr
    assert "'sse9'" in bad.stderr
    core = _backend.core()
    with pytest.raises(ValueError, match="'sse9'"):
        core.set_isa(name="sse9")
