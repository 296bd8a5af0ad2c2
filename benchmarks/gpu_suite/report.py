"""The one page: what failed, what is right, how fast it is beside the goals and the peers."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib import metadata
from typing import Any

import torch

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite.prepare import CARRIED
from benchmarks.gpu_suite.recorded import Results, recorded_runs, rows_of, timed_cases
from benchmarks.harness import _git, markdown_table

PACKAGES = ("torch", "triton", "numpy", "timm", "liger-kernel", "cut-cross-entropy",
            "flash-kmeans", "fastkmeans", "pykeops")  # fmt: skip
LLOYD_GOAL = 1.3  # times the assignment alone
# docs/cuda.md: counted by tools/print_cuda_floors.py, for the sizes of a real run
CUDA_FLOORS = {"1M x 768 fp32, K 100": 0.71, "patch_tokens [5102, 3, 224, 224] uint8": 0.36,
               "1M x 384 bf16, K 1000": 1.0, "1M x 768 bf16, K 8192": 15.93,
               "12.8M x 48 bf16, K 512": 2.11,
               "masked linear CE, 602,112 of 802,816 rows, d 512, K 100": 0.34}  # fmt: skip
EXTRA_MIB = 300e6 / 2**20  # of the loss, beyond its gradients


def machine(rehearsed: bool) -> dict[str, Any]:
    """Device, versions, commit; the clocks as nvidia-smi says, which is only asked."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"), "rehearsed": rehearsed,
        "python": platform.python_version(), "commit": _git("rev-parse", "HEAD"),
    }  # fmt: skip
    if not found["commit"] and (CARRIED / "commit").is_file():
        found["commit"] = (CARRIED / "commit").read_text().strip()
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if rehearsed or not torch.cuda.is_available():
        return found | {"device": "none: rehearsed on the CPU", "arch": "none"}
    about = torch.cuda.get_device_properties(0)
    query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw"
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        said = done.stdout.strip()
    except OSError:
        said = ""
    return found | {"device": about.name, "arch": f"sm_{about.major}{about.minor}",
                    "multiprocessors": about.multi_processor_count, "cuda": torch.version.cuda,
                    "nvidia_smi": said}  # fmt: skip


def _number(value: Any, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def best_peer(methods: dict[str, dict[str, Any]]) -> str:
    peers = [m for m in methods if not m.startswith("ours")]
    return min(peers, key=lambda m: methods[m]["ms"], default="")


def goals_table(results: Results) -> str:
    """Every goal of the issue that has a row: what was wanted, what was measured, whether met."""
    lines = []

    def line(case: str, goal: str, measured: str, met: bool) -> None:
        lines.append([case, goal, measured, "yes" if met else "NO"])

    def correct(case: str, row: dict[str, Any]) -> None:
        """And within its memory."""
        if "wrong_ids" in row:
            line(case, "no wrong id", str(row["wrong_ids"]), row["wrong_ids"] == 0)
        if row.get("gradient_mib") is not None and row.get("extra_mib") is not None:
            most = row["gradient_mib"] + EXTRA_MIB
            line(case, f"peak: gradients + 300 MB, {_number(most, 4)} MiB",
                 f"{_number(row['extra_mib'], 4)} MiB", row["extra_mib"] <= most)  # fmt: skip

    for case, methods in timed_cases(results).items():
        ours, known = methods.get("ours"), next(iter(methods.values()))
        goal, best = known["goal_ms"], best_peer(methods)
        cuda = methods.get(hopper.OURS)
        if cuda is not None:
            name = f"{case}, CUDA"
            correct(name, cuda)
            others = {f"goal, {_number(goal)} ms": goal}
            if ours is not None:
                others[f"Triton, {_number(ours['ms'])} ms"] = ours["ms"]
            if best:
                others[f"{best}, {_number(methods[best]['ms'])} ms"] = methods[best]["ms"]
            for what, most in others.items():
                if most is not None:
                    line(name, f"not slower than {what}", f"{_number(cuda['ms'])} ms",
                         cuda["ms"] <= most)  # fmt: skip
        if ours is None:
            line(case, "runs", "did not run", met=False)
            continue
        if goal is not None:
            line(case, f"{_number(goal)} ms", f"{_number(ours['ms'])} ms", ours["ms"] <= goal)
        correct(case, ours)
        alone = methods.get("ours, assignment")
        if alone is not None:
            ratio = ours["ms"] / alone["ms"]
            line(case, "1.3 x its assignment", f"{_number(ratio)} x", ratio <= LLOYD_GOAL)
        if best:
            line(case, f"not slower than {best}, {_number(methods[best]['ms'])} ms",
                 f"{_number(ours['ms'])} ms", ours["ms"] <= methods[best]["ms"])  # fmt: skip
    met = sum(row[-1] == "yes" for row in lines)
    head = ["work", "goal", "measured", "met"]
    return f"{met} of {len(lines)} met.\n\n" + markdown_table(head, lines)


def timing_table(results: Results) -> str:
    """A line for each case: ours, the goal, the ceilings, the best peer."""
    lines = []
    for case, methods in timed_cases(results).items():
        best, ours = best_peer(methods), methods.get("ours")
        known = ours or next(iter(methods.values()))
        alone = methods.get("ours, filter alone") or methods.get("ours, assignment")
        wrong = "" if ours is None else ours.get("wrong_ids", ours.get("error_w", ""))
        lines.append([
            case, _number(ours and ours["ms"]), _number(alone and alone["ms"]),
            _number(known["goal_ms"]),
            f"{_number(known['floor_ms'])} / {_number(known['paper_floor_ms'])}",
            f"{_number(known['copy_gb_s'], 4)} / {_number(known['bf16_tflop_s'])}",
            f"{best} {_number(methods[best]['ms'])}" if best else "",
            _number(methods[best]["ms"] / ours["ms"]) if best and ours else "",
            _number(ours and ours.get("undecided_percent")),
            _number(wrong) if isinstance(wrong, float) else wrong,
            _number(ours and ours.get("host_us")), _number(ours and ours.get("first_call_s")),
            _number(ours and ours.get("extra_mib"), 4), *_of_cuda(case, methods),
        ])  # fmt: skip
    head = ["work", "ours ms", "uncertified / assignment alone ms", "goal ms",
            "floor ms, here / on paper", "copy GB/s / bf16 TFLOP/s", "best peer ms", "times ours",
            "undecided %", "wrong ids / error of dW", "host µs", "first call s",
            "extra MiB", "CUDA ms", "its filter alone ms", "its floor ms, on paper",
            "undecided %", "host µs", "first call s"]  # fmt: skip
    return markdown_table(head, lines)


def _of_cuda(case: str, methods: dict[str, dict[str, Any]]) -> list[str]:
    floor = next((ms for name, ms in CUDA_FLOORS.items() if case.startswith(name)), None)
    cuda, alone = methods.get(hopper.OURS, {}), methods.get(f"{hopper.OURS}, filter alone", {})
    known = [cuda.get("ms"), alone.get("ms"), floor, cuda.get("undecided_percent")]
    return [_number(v) for v in (*known, cuda.get("host_us"), cuda.get("first_call_s"))]


def peer_table(results: Results) -> str:
    """Every method's milliseconds, wrong ids or error, and extra memory."""
    lines = [
        [row["case"], row["method"], _number(row["ms"]), _number(row["ms_min"]), row["rounds"],
         row.get("wrong_ids", _number(row.get("error_w"))), _number(row.get("extra_mib"), 4),
         _number(row.get("first_call_s"))]
        for result in results for row in result["rows"] if "ms" in row and "floor_ms" in row
    ]  # fmt: skip
    head = ["work", "method", "ms, median", "least", "rounds", "wrong ids / error of dW",
            "extra MiB", "first call s"]  # fmt: skip
    return markdown_table(head, lines)


def failures(results: Results) -> list[str]:
    """Each stage that did not end well, each method that did not run, with the reason."""
    found = [f"{r['stage']}: {r['problem']}" for r in results if r["problem"]]
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for line in result["failed"]:
            reasons.setdefault((line["method"], line["reason"]), []).append(line["case"])
    found += [
        f"{method}: {reason} ({cases[0]}{f' and {len(cases) - 1} more' if cases[1:] else ''})"
        for (method, reason), cases in reasons.items()
    ]
    return found


def page(facts: dict[str, Any], results: Results) -> str:
    """Markdown, the most wanted first."""
    said = ", ".join(f"{k} {v}" for k, v in facts.items() if v is not None and k != "rehearsed")
    parts = [f"# GPU suite: {facts['device']}", said]
    if facts["rehearsed"]:
        parts.append("REHEARSED on a CPU, the kernels interpreted: no time here means anything.")
    stages = [[r["stage"], r["seconds"], r["limit_s"], len(r["rows"]), len(r["failed"]),
               r["problem"]] for r in results]  # fmt: skip
    parts += ["## Stages", markdown_table(["stage", "s", "limit s", "rows", "failed", "problem"],
                                          stages)]  # fmt: skip
    wrong = failures(results)
    parts += ["## Did not run, or failed", "\n".join(f"* {line}" for line in wrong) or "nothing"]
    for row in (*rows_of(results, "tests"), *rows_of(results, "tests, CUDA")):
        counts = f"{row['counts']}, of them on {row['path']} {row['on_path']}"
        failed = "\n".join(f"* {line}" for line in row["failures"][:40])
        parts += [f"## The ops' own tests: {row['path']}",
                  f"{counts}; exit status {row['status']}", failed]  # fmt: skip
    right = [[r["case"], r["differing"], r["of"], _number(r["cpu_s"]), _number(r["gpu_s"])]
             for r in rows_of(results, "ids") if "differing" in r]  # fmt: skip
    head = ["what", "differing", "of", "CPU s", "first GPU call s"]
    parts += ["## CPU = GPU on real images", markdown_table(head, right)]
    checks = [[r["case"], "" if r["ok"] else r.get("problem") or r.get("said", "")[-120:],
               _number(r["seconds"])] for s in ("calls", "ids", "sanitizer")
              for r in rows_of(results, s) if "ok" in r]  # fmt: skip
    parts += [
        "## Self-checks and compute-sanitizer",
        markdown_table(["what", "problem", "s"], checks),
    ]
    cold = [[r["case"], _number(r["cold_start_s"]), _number(r.get("nvrtc_s") or None),
             _number(r["host_us"])]
            for r in rows_of(results, "calls") if "cold_start_s" in r]  # fmt: skip
    head = ["op", "cold start s", "of it NVRTC s", "host µs a call"]
    parts += ["## First and later calls of small problems", markdown_table(head, cold)]
    steps = [[r["case"], r["method"], _number(r["ms"]), _number(r["images_per_s"], 4),
              f"{r['first_loss']:.4f}"] for r in rows_of(results, "pretrain")]  # fmt: skip
    parts += ["## Pretraining steps", markdown_table(
        ["model", "method", "ms a step", "images/s", "first loss"], steps)]  # fmt: skip
    parts += ["## Goals", goals_table(results)]
    parts += ["## Times", timing_table(results), "## Every method", peer_table(results)]
    lines = recorded_runs(results, facts["arch"])
    parts += ["## For ops/_choice.py", f"```python\n{lines}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"
