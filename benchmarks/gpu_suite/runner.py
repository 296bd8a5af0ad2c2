"""Runs the stages, each in processes of its own with a time limit, and keeps what they found."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.bench import REHEARSE
from benchmarks.gpu_suite.cases import DEAD
from benchmarks.gpu_suite.journal import Journal
from benchmarks.harness import REPOSITORY, say

END = "GPU_SUITE_END"  # variable: when the stage's time is over, seconds since 1970


@dataclass(frozen=True)
class Stage:
    """``module.run`` with at most ``seconds``.

    patience: seconds without a line in the journal after which what is tried is given up and the
    stage goes on without it. restarts: how often.
    """

    name: str
    module: str
    seconds: float
    patience: float = 1e9
    restarts: int = 0


def environment(work: Path, rehearsed: bool) -> dict[str, str]:
    """Of every stage: carried packages last, caches of its own, nothing from the user's home."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", ""), str(work / "site")]
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "XDG_CACHE_HOME": str(work / "cache"),
        "TRITON_CACHE_DIR": str(work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join(
            [str(work / "site" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
    }
    for name in ("CLUSTERMIM_BACKEND", "CLUSTERMIM_TEST_DEVICE", "CLUSTERMIM_TEST_CUDA",
                 "TRITON_INTERPRET"):  # fmt: skip
        found.pop(name, None)
    if rehearsed:
        # What torch.compile makes on a CPU shows nothing here and takes half a minute a time.
        found |= {REHEARSE: "1", "TRITON_INTERPRET": "1", "TORCH_COMPILE_DISABLE": "1",
                  "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _attempt(command: list[str], env: dict[str, str], log: Path, file: Path, limits: Any) -> str:
    """Run once; "" or why it ended early. ``limits``: (end of the stage, patience)."""
    end, patience = limits
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**env, END: str(limits[0])},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        begin = time.time()
        try:
            while process.poll() is None:
                now = time.time()
                heard = max(begin, file.stat().st_mtime if file.exists() else 0.0)
                if now > end:
                    return "its time was over"
                if now - heard > patience:
                    return f"nothing heard for {patience:.0f} s"
                time.sleep(0.05)
        finally:
            _end(process)
    if process.returncode in (0, DEAD):
        return "" if process.returncode == 0 else "the CUDA context died"
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"exit status {process.returncode}: {' '.join(tail)[:300]}"


def run_stage(stage: Stage, work: Path, rehearsed: bool, seconds: float) -> dict[str, Any]:
    """What the journal holds afterwards, and how the stage ended."""
    file, log = work / f"{stage.name}.jsonl", work / f"{stage.name}.log"
    for old in (file, log):
        old.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_suite.stage", stage.module, str(file)]
    begin, problem = time.time(), ""
    for attempt in range(1 + stage.restarts):
        limits = (begin + seconds, stage.patience)
        problem = _attempt(command, environment(work, rehearsed), log, file, limits)
        if not problem or attempt == stage.restarts or time.time() - begin > seconds:
            break
        journal = Journal(file)
        if not journal.blame(problem) and "context" not in problem:
            break
    journal = Journal(file)
    if problem:
        journal.blame(problem)
    return {
        "stage": stage.name,
        "seconds": round(time.time() - begin, 1),
        "limit_s": round(seconds, 1),
        "problem": problem,
        "rows": journal.of("row"),
        "failed": journal.of("failed"),
        "notes": journal.of("note"),
    }


def run_all(
    stages: list[Stage],
    work: Path,
    rehearsed: bool,
    budget: float,
    publish: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Every stage with the time that is left; ``publish`` hears of all results after each."""
    results: list[dict[str, Any]] = []
    end = time.time() + budget
    for stage in stages:
        left = end - time.time()
        if left < 5:
            results.append({"stage": stage.name, "problem": "no time was left", "seconds": 0.0,
                            "limit_s": 0.0, "rows": [], "failed": [], "notes": []})  # fmt: skip
        else:
            say(f"{stage.name}: at most {min(stage.seconds, left):.0f} s of {left:.0f} s left")
            results.append(run_stage(stage, work, rehearsed, min(stage.seconds, left)))
            found = results[-1]
            say(f"{stage.name}: {found['seconds']} s, {len(found['rows'])} rows, "
                f"{len(found['failed'])} failed {found['problem']}")  # fmt: skip
        publish(results)
    return results
