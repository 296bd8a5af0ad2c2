"""compute-sanitizer over one small call of every op: memory, races, barriers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.calls import small_calls
from benchmarks.gpu_suite.journal import Journal

TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 77
REFUSED = "Device not supported"


def run(bench: Bench, journal: Journal) -> None:
    """A row for each tool; a rehearsal runs the calls under the strict interpreter instead."""
    command = [sys.executable, "-m", "benchmarks.gpu_suite.sanitize"]
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"
    )
    if sanitizer is None and not bench.rehearsed:
        journal.write("failed", case="all", method="compute-sanitizer", reason="not installed")
        return
    # torch hands out parts of large blocks, and memcheck does not see where one of them ends.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in TOOLS if not bench.rehearsed else ("strict interpreter",):
        if journal.failure(tool, "ours"):
            continue
        journal.write("trying", case=tool, method="ours")
        prefix = [] if bench.rehearsed else [
            str(sanitizer), "--tool", tool, "--error-exitcode", str(FOUND),
            "--kernel-name-exclude", "kernel_substring=at::native", "--print-limit", "20",
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(
            [*prefix, *command], capture_output=True, text=True, check=False, env=environment
        )
        text = (done.stdout + done.stderr).strip()
        print(text)
        if REFUSED in text:  # as under gVisor: says nothing about the kernels
            journal.write("failed", case=tool, method="compute-sanitizer", reason=REFUSED)
            continue
        journal.row(
            case=tool, method="ours", seconds=time.perf_counter() - start,
            ok=done.returncode == 0, status=done.returncode, said=text[-400:],
        )  # fmt: skip


def main() -> None:
    """Every call once; those without a kernel are named."""
    import contextlib
    from pathlib import Path

    import torch

    from benchmarks.gpu_suite.cases import one_line

    bench = Bench(Path())
    checked: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if bench.rehearsed:
        from tests.gpu import strict

        checked = strict.checked()
    with checked:
        for name, call in small_calls(torch.device(bench.device)).items():
            try:
                call()
            except RuntimeError as error:
                if "no such back-end" not in str(error):
                    raise
                print(f"{name}: {one_line(error)}")
    bench.synchronize()


if __name__ == "__main__":
    main()
