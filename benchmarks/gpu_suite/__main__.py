"""Everything that a GPU has to show, in one command.

    python -m benchmarks.gpu_suite --pack        # where there is a network: wheels, images, commit
    python -m benchmarks.gpu_suite               # on the machine with the GPU, without a network
    python -m benchmarks.gpu_suite --rehearse    # the same without a GPU, tiny and interpreted

Stages run in processes of their own with time limits, the results are written after each: a JSON
and a one-page table. docs/gpu.md says what each stage shows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite import report
from benchmarks.gpu_suite.runner import Stage, run_all
from benchmarks.harness import REPOSITORY

PACKAGE = "benchmarks.gpu_suite."
# In the order of what is missed most if the time is over: right first, then the goals.
STAGES = (
    Stage("build", PACKAGE + "prepare", 100),
    Stage("images", PACKAGE + "images", 40),
    Stage("calls", PACKAGE + "calls", 60, patience=30, restarts=6),
    Stage("compile", PACKAGE + "compile", 60),
    Stage("ids", PACKAGE + "ids", 60, patience=30, restarts=3),
    Stage("assign", PACKAGE + "assign", 100, patience=40, restarts=6),
    Stage("losses", PACKAGE + "losses", 100, patience=40, restarts=6),
    Stage("image ops", PACKAGE + "image_ops", 60, patience=40, restarts=4),
    Stage("tests", PACKAGE + "op_tests", 120),
    Stage("tests, CUDA", PACKAGE + "cuda_tests", 60),
    Stage("pretrain", PACKAGE + "pretrain", 50, patience=40, restarts=2),
    Stage("sanitizer", PACKAGE + "sanitize", 90, patience=60, restarts=2),
    Stage("grid", PACKAGE + "grid", 60, patience=30, restarts=4),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU, interpreted")
    parser.add_argument("--pack", action="store_true", help="collect what has to travel, and end")
    parser.add_argument("--data", type=Path, help="with --pack: the folder of image archives")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="*", choices=names, default=names)
    parser.add_argument("--budget", type=float, help="seconds for everything; default 540, "
                        "of a rehearsal 3000")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for the JSON and the page; "
                        "default: benchmarks/results, or the work folder")  # fmt: skip
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "gpu_suite")
    return parser.parse_args()


def main() -> int:
    """Run the stages and print the page; 1 where a stage or one of our own calls failed."""
    options = parse()
    if options.pack:
        from benchmarks.gpu_suite.pack import pack

        pack(options.data)
        return 0
    work: Path = options.work.resolve()
    chosen = [stage for stage in STAGES if stage.name in options.stages]
    if len(chosen) == len(STAGES):
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    budget = options.budget or 540
    if options.rehearse:  # interpreting is slow, and no GPU waits
        budget = options.budget or 3000
        chosen = [replace(s, seconds=6 * s.seconds, patience=6 * s.patience) for s in chosen]
    elif len(chosen) < len(STAGES):  # a second run, for what the first had no time for
        chosen = [replace(s, seconds=max(s.seconds, budget / len(chosen))) for s in chosen]
    out = options.out or (work if options.rehearse else REPOSITORY / "benchmarks" / "results")
    out.mkdir(parents=True, exist_ok=True)
    name = "rehearsal" if options.rehearse else f"gpu-{time.strftime('%Y-%m-%d-%H%M')}"
    facts = report.machine(options.rehearse)

    def publish(results: list[dict[str, Any]]) -> None:
        content = {"machine": facts, "stages": results}
        (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (out / f"{name}.md").write_text(report.page(facts, results), encoding="utf-8")

    results = run_all(chosen, work, options.rehearse, budget, publish)
    print(report.page(facts, results))
    print(f"written: {out / name}.json, {out / name}.md; logs of the stages: {work}")
    ours = [line for r in results for line in r["failed"]
            if line["method"].startswith("ours") and not line.get("missing")]  # fmt: skip
    return int(bool(ours) or any(r["problem"] for r in results))


if __name__ == "__main__":
    sys.exit(main())
