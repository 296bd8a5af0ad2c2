"""The tests of the ops that CUDA C++ serves, on it; NVRTC compiles each kind of call they make."""

from __future__ import annotations

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.journal import Journal
from benchmarks.gpu_suite.op_tests import run_tests
from benchmarks.harness import REPOSITORY

REHEARSED = ["tests/ops/test_patch_tokens.py", "-k", "cuda and test_metrics"]


def run(bench: Bench, journal: Journal) -> None:
    if hopper.left_out(bench, journal):
        return
    tests, where = REHEARSED, "emulated"
    if not bench.rehearsed:
        folder, where = REPOSITORY / "tests" / "ops", "device"
        files = (f for tests_of in hopper.TESTS for f in folder.glob(tests_of))
        tests = [str(f.relative_to(REPOSITORY)) for f in files if "triton" not in f.name]
    run_tests(bench, journal, tests, "cuda", CLUSTERMIM_TEST_CUDA=where)
