"""The ops' own tests on the GPU, in a pytest of their own; one line of the log for each outcome.

cuda_tests.py runs those of the back-end in CUDA C++.
"""

from __future__ import annotations

import collections
import importlib.util
import math
import os
import subprocess
import sys
import time

from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.journal import Journal
from benchmarks.gpu_suite.runner import END

REHEARSED = ["tests/ops/test_replace_patches.py", "-k", "triton"]


def run(bench: Bench, journal: Journal) -> None:
    run_tests(bench, journal, REHEARSED if bench.rehearsed else ["tests/ops"])


def run_tests(
    bench: Bench, journal: Journal, tests: list[str], path: str = "triton", **variables: str
) -> None:
    """Where the stage's time ends first, what ran until then is the row."""
    log = bench.work / f"op_tests_{path}.outcomes"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_suite.pytest_outcomes",
               "-p", "no:cacheprovider", "-W", "default"]  # fmt: skip
    command += tests
    if importlib.util.find_spec("xdist") is not None and not bench.rehearsed:
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    environment = {**os.environ, "GPU_SUITE_OUTCOMES": str(log), "OMP_NUM_THREADS": "1",
                   **variables}  # fmt: skip
    if not bench.rehearsed:
        environment["CLUSTERMIM_TEST_DEVICE"] = "cuda"
    journal.write("note", command=" ".join(command[1:]))
    left = float(os.environ.get(END, "inf")) - time.time() - 5
    status: object
    try:
        status = subprocess.run(
            command, env=environment, check=False, timeout=None if left == math.inf else left
        ).returncode
    except subprocess.TimeoutExpired:  # the runner ends pytest's workers
        status = "the time was over"
    journal.row(case="op tests", method="pytest", status=status, path=path, **summary(log, path))


def summary(log: object, path: str) -> dict[str, object]:
    """Counts, the tests that failed with their first line, and the reasons of the skipped."""
    from pathlib import Path

    file = Path(str(log))
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    parts = [line.split("\t", 2) for line in lines]
    counts = collections.Counter(outcome for outcome, _, _ in parts)
    on_path = collections.Counter(outcome for outcome, name, _ in parts if path in name)
    skips = collections.Counter(why for outcome, _, why in parts if outcome == "skipped")
    failed = [f"{name}: {why}" for outcome, name, why in parts if outcome == "failed"]
    return {"counts": dict(counts), "on_path": dict(on_path), "failures": failed[:200],
            "skips": dict(skips.most_common(20))}  # fmt: skip
