"""The lines for ops/_choice.py: back-ends that were right in all that the suite looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_suite import hopper

OPS = ("nearest_centroid", "patch_tokens", "lloyd_step", "lloyd_step_images", "replace_patches",
       "masked_cross_entropy", "masked_linear_cross_entropy")  # fmt: skip
MOST_ROW_ERROR = 2.0**-4  # of one token's gradient, which is one stale row's or chunk's to show
MOST_ERROR = 2.0**-7  # of a loss and its gradients, relative: as in ops/_self_checks.py
ABOUT = {"assign": OPS[0], "grid": OPS[0], "losses": OPS[-1]}
Results = Sequence[dict[str, Any]]


def rows_of(results: Results, stage: str) -> list[dict[str, Any]]:
    return [row for result in results if result["stage"] == stage for row in result["rows"]]


def timed_cases(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """case -> method -> its row."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        for row in result["rows"]:
            if "ms" in row and "floor_ms" in row:
                cases.setdefault(row["case"], {})[row["method"]] = row
    return cases


def concerned(test: str) -> tuple[str, ...]:
    """The ops that a failed test speaks of: all where its file does not say."""
    if "/test_masked" in test:
        return OPS[-2:]
    own = tuple(op for op in OPS if f"/test_{op}" in test)
    return own or OPS


def _op(stage: str, case: str) -> str:
    """The op that a case is named after, or that its stage is about; "" for none."""
    name = case.removeprefix("self-check of ").split(",")[0].split(" ")[0]
    return name if name in OPS else ABOUT.get(stage, "")


def _problems(results: Results, method: str, tests_stage: str) -> dict[str, str]:
    """op -> what stands against ``method``; ops of which all was right are not in it."""
    bad: dict[str, str] = {}
    for result in results:
        stage = result["stage"]
        for row in result["rows"]:
            if row.get("method") != method:
                continue
            if stage == "sanitizer" and not row["ok"]:
                bad |= {op: f"{row['case']}: see its log" for op in OPS if op not in bad}
            elif row.get("ok") is False:
                bad[_op(stage, row["case"])] = row["problem"]
            elif row.get("differing"):
                bad[_op(stage, row["case"])] = f"{row['differing']} results differ on real images"
            elif row.get("wrong_ids"):
                why = f"{row['wrong_ids']} wrong ids at {row['case']}"
                bad.setdefault(_op(stage, row["case"]), why)
            elif any(k.startswith("error_") and not v < MOST_ERROR for k, v in row.items()):
                bad.setdefault(_op(stage, row["case"]), f"far from float64 at {row['case']}")
            elif not row.get("worst_row_x", 0.0) < MOST_ROW_ERROR:
                bad.setdefault(_op(stage, row["case"]), f"a wrong row of dX at {row['case']}")
            elif row.get("same_bits") is False:
                bad.setdefault(_op(stage, row["case"]), f"two calls differ at {row['case']}")
        for line in result["failed"]:
            if line["method"] == method:
                everything = line["case"] == "all" or stage == "sanitizer"
                for op in OPS if everything else (_op(stage, line["case"]),):
                    bad.setdefault(op, line["reason"])
    tests = next(iter(rows_of(results, tests_stage)), None)
    ended = {result["stage"] for result in results if not result["problem"]}
    ran = {"calls", "ids"} <= ended and tests is not None
    for op in OPS:
        failed = [f for f in (tests or {}).get("failures", []) if op in concerned(f)]
        if failed or not ran:
            bad.setdefault(op, failed[0] if failed else "not all of it ran")
        elif tests and tests["status"] not in (0, 1):
            bad.setdefault(op, f"its tests did not end: {tests['status']}")
    return bad


def faster(results: Results, op: str) -> float:
    """How many times faster CUDA C++ is than Triton, the geometric mean of the op's cases; 0 where
    nothing was timed."""
    ratios = [
        methods["ours"]["ms"] / methods[hopper.OURS]["ms"]
        for result in results
        for case, methods in timed_cases([result]).items()
        if _op(result["stage"], case) == op and {"ours", hopper.OURS} <= methods.keys()
    ]
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0


def recorded_runs(results: Results, arch: str) -> str:
    """Ops without a failed test, check, sanitizer or wrong id; what was faster comes first.

    CUDA C++ leaves rows to Triton's tiers: where these erred, neither is recorded.
    """
    bad = _problems(results, "ours", "tests")
    bad_cuda = _problems(results, hopper.OURS, "tests, CUDA")
    lines = []
    for op in OPS:
        names, why = ["triton"], bad.get(op, "")
        note = f"  # not yet: {why}" if why else ""
        if op in hopper.OPS and not why:
            ratio = faster(results, op)
            if op in bad_cuda:
                note = f"  # not cuda: {bad_cuda[op]}"
            elif ratio == 0.0:
                note = "  # not cuda: nothing was timed"
            else:
                names.insert(0 if ratio > 1 else 1, "cuda")
                note = f"  # cuda {ratio:.2f} times as fast"
        listed = ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "")
        lines.append(f'    {"# " if why else ""}"{op}": {{"{arch}": ({listed})}},{note}')
    return "\n".join(["RECORDED_RUNS = {", *lines, "}"])
