"""An evaluation as a printed table, with units; the JSON file of the run holds the same numbers."""

from __future__ import annotations

from typing import Any

__all__ = ["ROW_NAMES", "format_table"]

ROW_NAMES = {
    "pretrained": "pretrained",
    "random_init": "random initialisation",
    "raw_pixels": "raw pixels",
}


def format_table(result: dict[str, Any]) -> str:
    """Lines for a terminal from what `knn` or `linear` returned."""
    settings = result["settings"]
    if result["kind"] == "knn":
        title = f"kNN, k = {settings['k']}, cosine, temperature {settings['temperature']:g}"
    else:
        title = "linear probe, penalty chosen on held-out training images"
    pool = {"mean": "mean of patch tokens", "cls": "[cls] token"}[result["pool"]]
    heads = ("width", "accuracy %", "95 % interval", "gain, points")
    size = f"{result['train_images']:,} train and {result['test_images']:,} test images"
    largest = f"(largest class: {result['majority_percent']:.1f} %)"
    lines = [
        f"{title}; frozen features ({pool})",
        f"{size}, {result['classes']} classes {largest}",
        _line("features", *heads),
    ]
    for row in result["rows"]:
        low, high = row["interval95_percent"]
        gain = result["gain_points"].get(row["name"])
        over = f"{gain['gain']:+.1f} ± {gain['half_width95']:.1f}" if gain else ""
        name = ROW_NAMES.get(row["name"], row["name"])
        accuracy = f"{row['accuracy_percent']:.1f}"
        lines.append(_line(name, f"{row['dim']:,}", accuracy, f"{low:.1f} to {high:.1f}", over))
    lines.append(
        "  gain: the first row over this one, paired on the test images, ± its 95 % half width"
    )
    lines += [f"  {note}" for note in result["notes"]]
    unfinished = [row["name"] for row in result["rows"] if not row.get("converged", True)]
    if unfinished:
        lines.append(f"  stopped at {settings['max_iter']} iterations: {', '.join(unfinished)}")
    return "\n".join(lines)


def _line(name: str, width: str, accuracy: str, interval: str, gain: str) -> str:
    return f"  {name:<22} {width:>7} {accuracy:>11} {interval:>15} {gain:>14}".rstrip()
