"""The loss benchmark: its methods compute one thing, its tables say what they mean, it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.losses import tables
from benchmarks.losses.cases import Case, all_cases, chosen
from benchmarks.losses.methods import METHODS, Method, step

REPOSITORY = Path(__file__).resolve().parent.parent
SLOW = [m for m in METHODS if "compiled" in m.key or m.key == "compacted"]
QUICK = [m for m in METHODS if m not in SLOW]


def check_method(method: Method, smoothing: float) -> None:
    if method.missing:
        pytest.skip(method.missing)
    case = Case(20, 16, 2, 100, torch.float32, smoothing)
    tensors = case.tensors()
    for name in "xwb":
        tensors[name].requires_grad_()
    truth = case.truth(tensors)
    for value, want in zip(step(method.make(), tensors), truth, strict=True):
        assert value.shape == want.shape
        assert float((value.double() - want).norm()) < 1e-5 * float(want.norm())


@pytest.mark.parametrize("method", QUICK, ids=lambda m: m.key)
def test_methods_compute_one_thing(method: Method) -> None:
    check_method(method, 0.0)
    if method.key != "torch-lce":  # leaves its own path, and warns
        check_method(method, 0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a boolean index breaks the graph, and torch says so
@pytest.mark.parametrize("method", SLOW, ids=lambda m: m.key)
def test_compiled_methods_compute_one_thing(method: Method) -> None:
    torch._dynamo.reset()
    check_method(method, 0.1)
    torch._dynamo.reset()


def test_cases_are_chosen_by_words() -> None:
    assert len(list(all_cases())) == 64
    assert len(chosen(["K=100 d=512"])) == 4
    assert [c.rows for c in chosen(["K=8192 bf16 d=768"])] == [8 * 147, 8 * 78]
    assert len(chosen(["K=50 40%", "K=100 40%"])) == 16
    with pytest.raises(SystemExit, match="no case is named"):
        chosen(["K=1"])


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"ms": 12.6, "best_peer_ms": 12.5}, ["slower than the best peer", "over 1.3 x the floor"]),
        ({"best_peer_ms": 18.1}, []),
        ({"best_peer_ms": 18.1, "ms": 11.5}, []),
        ({"best_peer_ms": 18.1, "floor_ms": 9.04, "ms": 11.7}, []),
        (
            {"best_peer_ms": 18.1, "ms": 12.2},
            ["over 1.3 x the floor", "under 1.5 x the best peer"],
        ),
        ({"peak_mib": 75.0}, ["over 64 MiB beyond the gradients"]),
    ],
)
def test_goals(change: dict[str, Any], missed: list[str]) -> None:
    row = {
        "case": "c", "method": "ours", "ms": 11.0, "best_peer": "p", "best_peer_ms": 12.5,
        "floor_ms": 9.0, "peak_mib": 70.0, "gradient_mib": 10.0,
    } | change  # fmt: skip
    assert tables.goal_of(row) == missed
    assert ("| yes |" in tables.goal_table([row])) == (not missed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory by Linux's VmHWM")
def test_program_runs(tmp_path: Path) -> None:
    json = tmp_path / "out.json"
    arguments = ["--cases", "K=50 d=192 bf16 40%", "--rounds", "1", "--max-seconds", "0.01"]
    path = os.pathsep.join([str(REPOSITORY), *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ops.bench_masked_cross_entropy", *arguments,
         "--threads", "1", "--peers", "masked", "compacted", "--json", str(json)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| **ours** |" in done.stdout
    assert "goals reached" in done.stdout
    assert json.is_file()
