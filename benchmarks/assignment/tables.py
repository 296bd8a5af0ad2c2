"""What was measured, as tables to read, and beside the goals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.harness import markdown_table

# Ratio to the best peer, two threads; "avx512" and "avx2": that path forced, in the second case
# the peers held to it. From what a prototype and the machine's limits showed to be possible.
GOALS = {
    "inet100": 4.4, "inet1000": 7.7, "inet8192": 9.4, "cifar50": 3.6, "cifar512": 4.3,
    "vit1000": 8.4, "rp1000": 8.4, "uint8 images, K = 100": 15.0, "uint8 images, K = 1000": 10.0,
}  # fmt: skip
AVX512_GOALS = {"narrow": 1.8, "wide": 1.2}  # D = 48; D >= 384
AVX2_GOAL = 1.0


def row_table(rows: Iterable[dict[str, Any]]) -> str:
    header = (
        "workload", "method", "ns/row min", "median", "x best peer", "% of limit", "wrong ids",
        "of rows", "rounds", "re-scored %",
    )  # fmt: skip
    lines = [
        (
            f"{r['workload']} (D={r['dim']}, K={r['num_centroids']})",
            f"**{r['method']}**" if r["kind"] == "ours" else r["method"],
            f"{r['ns_per_row']:,.1f}",
            f"{r['ns_per_row_median']:,.1f}",
            f"{r['ratio_to_best_peer']:.2f}",
            f"{100 * r['limit_ns'] / r['ns_per_row']:.0f}",
            r["wrong_ids"],
            f"{r['rows']:,}",
            r["rounds"],
            ", ".join(f"{k} {v}" for k, v in r["rescored"].items()),
        )
        for r in rows
    ]
    return markdown_table(header, lines)


def goal_table(rows: Iterable[dict[str, Any]]) -> str:
    """Ratios to the best peer of the same run beside the goals."""
    lines = []
    for r in rows:
        goal = _goal(r)
        if goal is None:
            continue
        held = f", peers held to {r['held']}" if r["held"] else ""
        lines.append(
            (
                f"{r['workload']}{held}",
                r["method"],
                f"{r['ratio_to_best_peer']:.2f}",
                goal,
                "yes" if r["ratio_to_best_peer"] >= goal else "NO",
                r["wrong_ids"],
            )
        )
    header = ("workload", "method", "x best peer", "goal", "reached", "wrong ids")
    return markdown_table(header, lines)


def _goal(row: dict[str, Any]) -> float | None:
    if row["held"]:
        return AVX2_GOAL if row["held"] == "avx2" and row["kind"] == "ours" else None
    if row["method"] == "ours":
        return GOALS.get(row["workload"])
    if row["method"] == "ours, avx512" and row["section"] == "rows":
        return AVX512_GOALS["narrow" if row["dim"] < 384 else "wide"]
    return None


def worst_table(rows: Iterable[dict[str, Any]]) -> str:
    header = (
        "workload", "rows of", "ours ns/row", "fp32 path", "ours, ordinary", "fp32, ordinary",
        "ours / fp32", "ours / fp32 on ordinary", "wrong ids", "re-scored %",
    )  # fmt: skip
    lines = [
        (
            r["workload"],
            f"{r['case']} ({r['rows']:,})",
            *(f"{r[f'{m} ns']:,.0f}" for m in ("ours", "fp32", "ours ordinary", "fp32 ordinary")),
            f"{r['to_fp32']:.2f}",
            f"{r['to_fp32_ordinary']:.2f}",
            f"{r['wrong_ids']} of {r['checked']}",
            ", ".join(f"{k} {v}" for k, v in r["rescored"].items()),
        )
        for r in rows
    ]
    return markdown_table(header, lines)


def call_table(rows: Iterable[dict[str, Any]]) -> str:
    """µs of a call with one row: shapes down, methods across."""
    rows = list(rows)
    methods = list(dict.fromkeys(r["method"] for r in rows))
    shapes = list(dict.fromkeys((r["dim"], r["num_centroids"]) for r in rows))
    cells = {(r["dim"], r["num_centroids"], r["method"]): r["us"] for r in rows}
    lines = [
        (f"D={d}, K={k}", *(f"{cells.get((d, k, m), float('nan')):,.1f}" for m in methods))
        for d, k in shapes
    ]
    return markdown_table(("µs a call of one row", *methods), lines)
