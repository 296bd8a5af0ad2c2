"""The suite for the first GPU: nothing in it may fail there for the first time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_suite import hopper, op_tests, pretrain, recorded, report, sanitize
from benchmarks.gpu_suite.bench import Bench, Ceilings
from benchmarks.gpu_suite.cases import Case, Method, run_case
from benchmarks.gpu_suite.journal import Journal
from benchmarks.gpu_suite.runner import END, Stage, run_all, run_stage
from clustermim_fast import ops
from tests.gpu.dying_stage import METHODS
from tests.ops.harness import run_python

REPOSITORY = Path(__file__).resolve().parent.parent
DYING = "tests.gpu.dying_stage"


@pytest.mark.parametrize("hanging", [(), pytest.param(("hangs",), marks=pytest.mark.slow)])
def test_a_stage_goes_on_without_what_died_or_hung(tmp_path, monkeypatch, hanging):
    """Patience is for the start of a process too, on a machine that has much else to do."""
    monkeypatch.setenv(METHODS, " ".join(["fine", "dies", *hanging, "fails", "ours"]))
    stage = Stage("dying", DYING, 600, patience=30, restarts=5)
    found = run_stage(stage, tmp_path, rehearsed=False, seconds=300)
    assert found["problem"] == ""
    assert [row["method"] for row in found["rows"]] == ["fine", "ours"]
    assert len({row["process"] for row in found["rows"]}) == 2
    reasons = {line["method"]: line["reason"] for line in found["failed"]}
    assert reasons.keys() == {"dies", *hanging, "fails"}
    assert "exit status -6" in reasons["dies"]
    assert not hanging or "nothing heard" in reasons["hangs"]


@pytest.mark.slow
def test_a_stage_out_of_time_keeps_its_rows(tmp_path):
    stages = [Stage("dying", DYING, 12, restarts=1), Stage("never", DYING, 10)]
    pages = []
    results = run_all(stages, tmp_path, False, 14, lambda r: pages.append(len(r)))
    assert results[0]["problem"] == "its time was over"
    assert [row["method"] for row in results[0]["rows"]] == ["fine"]
    assert {line["method"] for line in results[0]["failed"]} == {"dies", "hangs"}
    assert results[1]["problem"] == "no time was left"
    assert pages == [1, 2]


def test_a_case_holds_ours_and_its_peers(tmp_path):
    bench, journal = Bench(tmp_path, rehearsed=True), Journal(tmp_path / "journal")

    def broken():
        raise ValueError("no such thing\nand more")

    methods = [
        Method("ours", lambda: lambda: torch.ones(3)),
        Method("broken", lambda: broken),
        Method("absent", dict, "not installed"),
    ]
    case = Case("adding", methods, moved=12, flops=3, check=lambda out: {"wrong_ids": len(out)},
                goal_ms=2.0, facts=lambda call: {"undecided_percent": 1.5})  # fmt: skip
    run_case(bench, journal, case, Ceilings(bench))
    run_case(bench, journal, case, Ceilings(bench))  # finished: not again
    (row,) = Journal(tmp_path / "journal").of("row")
    assert row["method"] == "ours"
    assert (row["wrong_ids"], row["undecided_percent"], row["goal_ms"]) == (3, 1.5, 2.0)
    assert row["floor_ms"] > 0
    assert row["host_us"] > 0
    reasons = {line["method"]: line["reason"] for line in journal.of("failed")}
    assert reasons == {"broken": "ValueError: no such thing", "absent": "not installed"}


def _result(stage, rows, failed=()):
    return {"stage": stage, "seconds": 1.0, "limit_s": 2.0, "problem": "", "rows": rows,
            "failed": list(failed), "notes": []}  # fmt: skip


def test_only_what_was_right_everywhere_is_recorded():
    tests = {"counts": {"passed": 9}, "on_path": {}, "path": "triton", "status": 1, "skips": {},
             "failures": ["tests/ops/test_replace_patches.py::test_pixels[triton]: 3 differ"],
             "case": "op tests", "method": "pytest"}  # fmt: skip
    ids = [
        {"case": "nearest_centroid, fp32, K 9", "method": "ours", "differing": 0},
        {"case": "patch_tokens, uint8, K 9", "method": "ours", "differing": 2},
    ]
    died = {"case": "masked_cross_entropy", "method": "ours", "reason": "nothing heard for 30 s"}
    results = [_result("calls", [], [died]), _result("ids", ids), _result("tests", [tests])]
    lines = recorded.recorded_runs(results, "sm_90").splitlines()
    right = {line.split('"')[1] for line in lines[1:-1] if not line.strip().startswith("#")}
    assert "nearest_centroid" in right
    assert not right & {"replace_patches", "patch_tokens", "masked_cross_entropy"}
    timed = {"case": "1M x 768 fp32, K 9", "method": "ours", "wrong_ids": 1}
    lines = recorded.recorded_runs([*results, _result("assign", [timed])], "sm_90")
    assert '"nearest_centroid": {"sm_90": ("triton",)},  # not yet: 1 wrong ids' in lines
    cut_short = [
        r | {"problem": "its time was over"} if r["stage"] == "ids" else r for r in results
    ]
    for line in recorded.recorded_runs(cut_short, "sm_90").splitlines()[1:-1]:
        assert line.strip().startswith("#")
    everything_but_ids = recorded.recorded_runs(results[::2], "sm_90").splitlines()[1:-1]
    assert all(line.strip().startswith("#") for line in everything_but_ids)


def _cuda_run(cuda_ms=0.5, differing=0, failures=(), status=0, failed=(), **loss):
    """Results in which Triton was right everywhere; as much of CUDA C++ as said."""

    def timed(case, method, ms, **right):
        return {"case": case, "method": method, "ms": ms, "floor_ms": 0.1, **right}

    def tests(path, failures=(), status=0):
        return {"case": "op tests", "method": "pytest", "path": path, "status": status,
                "failures": list(failures), "counts": {}, "on_path": {}, "skips": {}}  # fmt: skip

    ids = [
        {"case": f"{op}, K 9{suffix}", "method": method, "differing": wrong}
        for op in recorded.OPS
        for method, suffix, wrong in (("ours", "", 0), (hopper.OURS, ", CUDA", differing))
        if method == "ours" or op in hopper.OPS
    ]
    times = [
        timed(case, method, ms, wrong_ids=0)
        for case in ("1M x 768 fp32, K 9", "patch_tokens [9, 3, 9, 9] uint8, K 9")
        for method, ms in (("ours", 1.0), (hopper.OURS, cuda_ms))
    ]
    losses = [
        timed(
            "masked linear CE, 9 of 12 rows, d 8, K 9",
            method,
            ms,
            **{"error_w": 2e-3, "worst_row_x": 9e-3, "same_bits": True} | found,
        )
        for method, ms, found in (("ours", 1.0, {}), (hopper.OURS, cuda_ms, loss))
    ]
    return [_result("calls", [], failed), _result("ids", ids), _result("assign", times),
            _result("losses", losses), _result("tests", [tests("triton")]),
            _result("tests, CUDA", [tests("cuda", failures, status)])]  # fmt: skip


def _line(results, op):
    lines = recorded.recorded_runs(results, "sm_90").splitlines()
    return next(line for line in lines if f'"{op}"' in line)


def test_cuda_is_recorded_where_it_was_right_and_the_faster_first():
    assert '("cuda", "triton")},  # cuda 2.00 times' in _line(_cuda_run(), "patch_tokens")
    assert '("cuda", "triton")},' in _line(_cuda_run(), "nearest_centroid")
    assert '("triton", "cuda")},' in _line(_cuda_run(cuda_ms=4.0), "nearest_centroid")
    loss = "masked_linear_cross_entropy"
    assert '("cuda", "triton")},  # cuda 2.00 times' in _line(_cuda_run(), loss)
    assert '{"sm_90": ("triton",)},' in _line(_cuda_run(), "lloyd_step")


@pytest.mark.parametrize(
    "wrong, why",
    [
        (dict(error_w=0.1), "far from float64"),
        (dict(error_w=float("nan")), "far from float64"),
        (dict(worst_row_x=0.2), "a wrong row of dX"),
        (dict(worst_row_x=float("nan")), "a wrong row of dX"),
        (dict(same_bits=False), "two calls differ"),
    ],
)
def test_a_loss_far_from_float64_or_from_itself_is_not_recorded(wrong, why):
    line = _line(_cuda_run(**wrong), "masked_linear_cross_entropy")
    assert f'("triton",)}},  # not cuda: {why} at masked linear CE' in line
    assert "# not cuda" not in _line(_cuda_run(**wrong), "patch_tokens")


@pytest.mark.parametrize(
    "wrong, why",
    [
        (dict(differing=2), "2 results differ on real images"),
        (dict(failures=["tests/ops/test_nearest_centroid.py::t[cuda]: no"]), "tests/ops"),
        (dict(status="the time was over"), "its tests did not end"),
        (dict(failed=[{"case": "all", "method": hopper.OURS, "reason": "it needs 9.0"}]), "9.0"),
    ],
)
def test_cuda_is_not_recorded_otherwise_and_triton_is(wrong, why):
    line = _line(_cuda_run(**wrong), "nearest_centroid")
    assert '"nearest_centroid": {"sm_90": ("triton",)},  # not cuda: ' in line
    assert why in line
    assert not line.strip().startswith("#")


def test_cuda_is_not_recorded_without_its_tests_or_times():
    results = _cuda_run()
    assert "# not cuda: not all of it ran" in _line(results[:-1], "patch_tokens")
    untimed = [r for r in results if r["stage"] != "assign"]
    assert "# not cuda: nothing was timed" in _line(untimed, "patch_tokens")


def test_what_hung_in_the_first_stage_is_not_tried_again(tmp_path, monkeypatch):
    """Elsewhere it is a line with the reason, and no failure of ours."""
    bench, journal = Bench(tmp_path, rehearsed=True), Journal(tmp_path / "ids.jsonl")
    assert hopper.left_out(bench, journal)
    (line,) = journal.of("failed")
    assert line["missing"]
    assert "it needs CUDA tensors" in line["reason"]
    monkeypatch.setattr(hopper._cuda, "unavailable_reason", lambda device: None)
    assert hopper.missing(bench) == ""
    first = Journal(tmp_path / "calls.jsonl")
    first.write("trying", case="nearest_centroid, CUDA", method=hopper.OURS)
    first.blame("nothing heard for 30 s")
    assert hopper.missing(bench) == "nearest_centroid, CUDA: nothing heard for 30 s"
    assert first.failure("another", f"{hopper.OURS}, filter alone")
    assert not first.failure("another", "ours")


FILTER_ALONE = """
import torch
from benchmarks.gpu_suite.uncertified import filter_alone
from tests.gpu import emulated, strict
strict.install()
x, c = torch.eye(3, 48), torch.eye(3, 48).flip(0)
with emulated.running():
    for hopper in (False, True):
        print(filter_alone(x, c, hopper)().tolist())
"""


def test_the_filters_alone_follow_the_back_ends():
    """In the ordinary run: a change of the filters is noticed where it is made."""
    done = run_python(FILTER_ALONE, TRITON_INTERPRET="1")
    assert done.stdout.split("\n")[:2] == ["[2, 1, 0]"] * 2, done.stderr


def test_a_sanitizer_that_does_not_know_an_instruction_says_nothing_about_the_kernels():
    said = "========= COMPUTE-SANITIZER\n========= Error: Unsupported instruction setmaxnreg"
    assert sanitize.refusal(said) == "========= Error: Unsupported instruction setmaxnreg"
    found = "========= Invalid __shared__ read of size 4 bytes"
    assert sanitize.refusal(found) == sanitize.refusal(f"{said}\n{found}") == ""
    assert sanitize.refusal("nearest_centroid: it is not supported") == ""


def test_every_goal_is_held_against_what_was_measured():
    def row(case, method, ms, **more):
        known = {"goal_ms": None, "paper_floor_ms": 0.7, "floor_ms": 0.8, "copy_gb_s": 4000.0,
                 "bf16_tflop_s": 700.0, "ms_min": ms, "rounds": 9}  # fmt: skip
        return {"case": case, "method": method, "ms": ms, **known, **more}

    rows = [
        row("1M", "ours", 0.84, goal_ms=0.85, wrong_ids=0),
        row("1M", "ours, filter alone", 0.8, goal_ms=0.85),
        row("1M", "torch, eager", 5.0, goal_ms=0.85), row("1M", "faiss", 0.5, goal_ms=0.85),
        row("lloyd", "ours", 1.4, wrong_ids=2), row("lloyd", "ours, assignment", 1.0),
        row("loss", "ours", 1.0, goal_ms=0.7, gradient_mib=100.0, extra_mib=386.0),
        row("died", "torch, eager", 5.0, goal_ms=0.3),
        row("both", "ours", 0.9, wrong_ids=0), row("both", hopper.OURS, 0.7, wrong_ids=0),
        row("loss", hopper.OURS, 0.4, goal_ms=0.7, gradient_mib=100.0, extra_mib=390.0),
    ]  # fmt: skip
    table = report.goals_table([_result("assign", rows)])
    assert table.startswith("8 of 14 met.")
    for line in (
        "| 1M | 0.85 ms | 0.84 ms | yes |",
        "| 1M | no wrong id | 0 | yes |",
        "| 1M | not slower than faiss, 0.5 ms | 0.84 ms | NO |",
        "| lloyd | no wrong id | 2 | NO |",
        "| lloyd | 1.3 x its assignment | 1.4 x | NO |",
        "| loss | 0.7 ms | 1 ms | NO |",
        "| loss | peak: gradients + 300 MB, 386.1 MiB | 386 MiB | yes |",
        "| died | runs | did not run | NO |",
        "| loss, CUDA | not slower than goal, 0.7 ms | 0.4 ms | yes |",
        "| loss, CUDA | peak: gradients + 300 MB, 386.1 MiB | 390 MiB | NO |",
        "| both, CUDA | no wrong id | 0 | yes |",
        "| both, CUDA | not slower than Triton, 0.9 ms | 0.7 ms | yes |",
    ):
        assert line in table, table


def test_tests_that_did_not_end_record_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(END, str(time.time() + 5.2))  # 0.2 s are left to pytest
    journal = Journal(tmp_path / "journal")
    op_tests.run(Bench(tmp_path, rehearsed=True), journal)
    (row,) = journal.of("row")
    assert row["status"] == "the time was over"
    ids = [{"case": f"{op}, fp32", "differing": 0} for op in recorded.OPS]
    lines = recorded.recorded_runs([_result("ids", ids), _result("tests", [row])], "sm_90")
    assert all(line.strip().startswith("#") for line in lines.splitlines()[1:-1])


def test_a_pretraining_step_is_the_driver_s(tmp_path):
    """In the ordinary run: a change of the driver is noticed where it is made."""
    torch.save(torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8), tmp_path / "photographs.pt")
    step = pretrain.make_step(Bench(tmp_path, rehearsed=True), "vit_small_patch16_224", 2, 4)
    with ops.use_backend("reference"):
        assert 0.0 < float(step()) < 10.0


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """Every stage to its end, without a GPU; the kernels interpreted."""
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--rehearse", "--work", tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "rehearsal.json").read_text())["stages"]
    assert not [r["stage"] for r in results if not r["rows"] and r["stage"] != "images"]
    assert "| replace_patches" in (tmp_path / "rehearsal.md").read_text()
    assert not [row for r in results for row in r["rows"] if row.get("wrong_ids") and
                row["method"].startswith("ours") and "alone" not in row["method"]]  # fmt: skip
