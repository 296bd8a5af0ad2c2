"""What was measured, as tables to read, and beside the goals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.harness import markdown_table

MOST_OF_FLOOR = 1.3
LEAST_OF_PEER = 1.5  # where the best peer takes more than twice the floor
MEMORY_MIB = 64  # beyond the gradients
ERRORS = ("loss", "dX", "dW", "db")


def method_table(rows: Iterable[dict[str, Any]]) -> str:
    """Every method of every case."""
    header = (
        "case", "method", "ms min", "median", "best peer / it", "it / floor", "peak MiB",
        "beyond gradients", *(f"error {name}" for name in ERRORS), "rounds",
    )  # fmt: skip
    lines = [
        (
            r["case"],
            f"**{r['method']}**" if r["method"] == "ours" else r["method"],
            f"{r['ms']:.2f}",
            f"{r['ms_median']:.2f}",
            f"{r['best_peer_ms'] / r['ms']:.2f}",
            f"{r['ms'] / r['floor_ms']:.2f}",
            f"{r['peak_mib']:.0f}",
            f"{r['peak_mib'] - r['gradient_mib']:.0f}",
            *(f"{r['errors'][name]:.1e}" for name in ERRORS),
            r["rounds"],
        )
        for r in rows
    ]
    return markdown_table(header, lines)


def goal_of(row: dict[str, Any]) -> list[str]:
    """The goals that a row of ours misses."""
    peer, floor = row["best_peer_ms"], row["floor_ms"]
    missed = []
    if row["ms"] > peer:
        missed.append("slower than the best peer")
    if row["ms"] > MOST_OF_FLOOR * floor:
        missed.append(f"over {MOST_OF_FLOOR} x the floor")
    if peer > 2 * floor and peer < LEAST_OF_PEER * row["ms"]:
        missed.append(f"under {LEAST_OF_PEER} x the best peer")
    if row["peak_mib"] > row["gradient_mib"] + MEMORY_MIB:
        missed.append(f"over {MEMORY_MIB} MiB beyond the gradients")
    return missed


def goal_table(rows: Iterable[dict[str, Any]]) -> str:
    """Ours beside the best peer and the floor, which bounds what the ratio to a peer can be."""
    lines = [
        (
            r["case"],
            r["best_peer"],
            f"{r['best_peer_ms'] / r['ms']:.2f}",
            f"{r['best_peer_ms'] / r['floor_ms']:.2f}",
            f"{r['ms'] / r['floor_ms']:.2f}",
            f"{r['peak_mib'] - r['gradient_mib']:.0f}",
            "; ".join(goal_of(r)) or "yes",
        )
        for r in rows
        if r["method"] == "ours" and r["best_peer"]
    ]
    header = (
        "case", "best peer", "best peer / ours", "ceiling (best peer / floor)", "ours / floor",
        "MiB beyond gradients", "goals reached",
    )  # fmt: skip
    return markdown_table(header, lines)
