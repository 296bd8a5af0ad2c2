"""The ops' own tests on the GPU, in a pytest of their own; one line of the log for each outcome."""

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
    """Where the stage's time ends first, what ran until then is the row."""
    log = bench.work / "op_tests.outcomes"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_suite.pytest_outcomes",
               "-p", "no:cacheprovider", "-W", "default"]  # fmt: skip
    command += REHEARSED if bench.rehearsed else ["tests/ops"]
    if importlib.util.find_spec("xdist") is not None and not bench.rehearsed:
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    environment = {**os.environ, "GPU_SUITE_OUTCOMES": str(log), "OMP_NUM_THREADS": "1"}
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
    journal.row(case="op tests", method="pytest", status=status, **summary(log))


def summary(log: object) -> dict[str, object]:
    """Counts, the tests that failed with their first line, and the reasons of the skipped."""
    from pathlib import Path

    file = Path(str(log))
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    parts = [line.split("\t", 2) for line in lines]
    counts = collections.Counter(outcome for outcome, _, _ in parts)
    on_triton = collections.Counter(outcome for outcome, name, _ in parts if "triton" in name)
    skips = collections.Counter(why for outcome, _, why in parts if outcome == "skipped")
    failed = [f"{name}: {why}" for outcome, name, why in parts if outcome == "failed"]
    return {"counts": dict(counts), "on_triton": dict(on_triton), "failures": failed[:200],
            "skips": dict(skips.most_common(20))}  # fmt: skip
