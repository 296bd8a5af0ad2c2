"""compute-sanitizer over one small call of every op: memory, races, barriers."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.calls import small_calls
from benchmarks.gpu_suite.journal import Journal

TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 77
# Under gVisor it knows no device, and it may not know an instruction of Hopper's: such a run says
# nothing about the kernels.
REFUSED = ("not supported", "unsupported", "internal sanitizer error", "unknown instruction")
FINDINGS = ("Invalid", "Misaligned", "hazard", "Race reported", "Barrier error", "Divergent")
# The rows for the back-end in CUDA C++ are named after the tool and it.
METHODS = (("ours", "triton", ""), (hopper.OURS, "cuda", ", CUDA"))


def run(bench: Bench, journal: Journal) -> None:
    """A row for each tool and back-end; a rehearsal has the strict interpreter, or the emulation,
    instead."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"
    )
    if sanitizer is None and not bench.rehearsed:
        journal.write("failed", case="all", method="compute-sanitizer", reason="not installed")
        return
    # torch hands out parts of large blocks, and memcheck does not see where one of them ends.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tools = TOOLS if not bench.rehearsed else ("strict interpreter",)
    without_cuda = hopper.left_out(bench, journal)
    for tool, (method, backend, suffix) in itertools.product(tools, METHODS):
        case = tool + suffix
        if journal.failure(case, method) or journal.finished(case):
            continue
        if backend == "cuda" and without_cuda:
            continue
        journal.write("trying", case=case, method=method)
        command = [sys.executable, "-m", "benchmarks.gpu_suite.sanitize", backend]
        kernels = ["--kernel-name-exclude", "kernel_substring=at::native"]
        if backend == "cuda":  # what is Triton's beside it has been looked at
            kernels = ["--kernel-name", "kernel_substring=filter_rows",
                       "--kernel-name", "kernel_substring=hopper_linear_rows"]  # fmt: skip
        prefix = [] if bench.rehearsed else [
            str(sanitizer), "--tool", tool, "--error-exitcode", str(FOUND), *kernels,
            "--print-limit", "20",
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(
            [*prefix, *command], capture_output=True, text=True, check=False, env=environment
        )
        text = (done.stdout + done.stderr).strip()
        print(text)
        reason = refusal(text)
        if reason:
            journal.write("failed", case=case, method="compute-sanitizer", reason=reason)
            continue
        journal.row(
            case=case, method=method, seconds=time.perf_counter() - start,
            ok=done.returncode == 0, status=done.returncode, said=text[-400:],
        )  # fmt: skip
        journal.write("finished", case=case)


def refusal(text: str) -> str:
    """The tool's own words that it cannot look at these kernels; "" if it could."""
    said = [line for line in text.splitlines() if line.startswith("=====")]
    if any(word in line for line in said for word in FINDINGS):
        return ""
    return next((line for line in said if any(why in line.lower() for why in REFUSED)), "")


def main(backend: str) -> None:
    """Every call once; those without a kernel are named."""
    import contextlib
    from pathlib import Path

    import torch

    from benchmarks.gpu_suite.cases import one_line

    bench = Bench(Path())
    checked: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if bench.rehearsed:
        from tests.gpu import emulated, strict

        checked = emulated.running() if backend == "cuda" else strict.checked()
        strict.install()
    with checked:
        for name, call in small_calls(torch.device(bench.device), backend).items():
            try:
                call()
            except RuntimeError as error:
                if "no such back-end" not in str(error):
                    raise
                print(f"{name}: {one_line(error)}")
    bench.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
