"""An evaluation as a printed table, with units; the JSON file of the run holds the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ROW_NAMES", "format_table", "protocol_lines", "row_name"]

ROW_NAMES = {
    "pretrained": "pretrained",
    "random_init": "random initialisation",
    "raw_pixels": "raw pixels",
}
POOL_NAMES = {
    "mean": "mean of patch tokens",
    "cls": "[cls] token",
    "abmilp": "AbMILP",
    "map": "attention with a learned query",
    "attn_mean": "by attention of [cls]",
    "attn_lowest_entropy": "by sharpest head",
    "teacher": "by a teacher's attention",
}


def row_name(row: dict[str, Any]) -> str:
    """How a row of a result is named in a table: "random initialisation, [cls] token"."""
    name = ROW_NAMES.get(row["name"], row["name"])
    if "pooling" not in row:
        return name
    return f"{name}, {POOL_NAMES.get(row['pooling'], row['pooling'])}"


def protocol_lines(result: dict[str, Any]) -> list[str]:
    """How a result was measured, in words and numbers."""
    lines = _method_lines(result)
    if shots := result["settings"].get("shots"):
        lines.append(f"low-shot: {shots} of the training images of each class, drawn by seed")
    return lines


def _method_lines(result: dict[str, Any]) -> list[str]:
    settings = result["settings"]
    pool = POOL_NAMES.get(result["pool"], "")
    if result["kind"] == "knn":
        name = f"kNN, k = {settings['k']}, cosine, temperature {settings['temperature']:g}"
        return [f"{name}; frozen features ({pool})"]
    if result["kind"] == "linear":
        name = "linear probe, penalty chosen on held-out training images"
        return [f"{name}; frozen features ({pool})"]
    training = settings["training"]
    if result["kind"] == "finetune":
        return _finetune_lines(settings, pool)
    norm = "final norm" if settings["norm"] else "no final norm"
    rates = ", ".join(f"{rate:g}" for rate in settings["learning_rates"])
    how = f"{training['epochs']} epochs, {training['optimizer']}, batch {training['batch_size']:,}"
    how += "" if training.get("batch_norm", True) else ", no batch norm"
    chosen = " on held-out training images" if len(settings["learning_rates"]) > 1 else ""
    switches = dict(settings["abmilp"]) if "abmilp" in settings["pool"] else {}
    listed = ", ".join(f"{name} {value}" for name, value in switches.items())
    return [
        f"attentive probes on frozen tokens (layer {settings['layer']}, {norm}); {how}",
        f"one un-augmented view; base learning rate {'of ' if chosen else ''}{rates}{chosen}",
        *([f"AbMILP: {listed}"] if listed else []),
    ]


def _finetune_lines(settings: dict[str, Any], pool: str) -> list[str]:
    training, rates = settings["training"], settings["learning_rates"]
    how = (
        f"{training['epochs']} epochs, AdamW, batch {training['batch_size']:,}, "
        f"layer decay {training['layer_decay']:g}"
    )
    mixed = (
        f"mixup {training['mixup']:g}, cutmix {training['cutmix']:g}, "
        f"label smoothing {training['label_smoothing']:g}"
    )
    rate = f"base learning rate {rates[0]:g}"
    if len(rates) > 1:
        listed = ", ".join(f"{rate:g}" for rate in rates)
        rate = f"base learning rate of {listed} on held-out training images"
    average = f", EMA {training['ema_decay']:g}" if training["ema_decay"] else ""
    return [f"fine-tuning ({pool}); {how}", f"{mixed}, {rate}{average}"]


def format_table(result: dict[str, Any]) -> str:
    """Lines for a terminal from what `knn`, `linear`, `attentive` or `finetune` returned."""
    settings = result["settings"]
    heads = ("width", "accuracy %", "95 % interval", "gain, points")
    size = f"{result['train_images']:,} train and {result['test_images']:,} test images"
    largest = f"(largest class: {result['majority_percent']:.1f} %)"
    lines = [
        *protocol_lines(result),
        f"{size}, {result['classes']} classes {largest}",
    ]
    wide = max(len(row_name(row)) for row in result["rows"])
    lines.append(_line("features".ljust(wide), *heads))
    for row in result["rows"]:
        low, high = row["interval95_percent"]
        key = f"{row['name']} {row['pooling']}" if "pooling" in row else row["name"]
        gain = result["gain_points"].get(key)
        over = f"{gain['gain']:+.1f} ± {gain['half_width95']:.1f}" if gain else ""
        accuracy = f"{row['accuracy_percent']:.1f}"
        if "seed_deviation_points" in row:
            accuracy += f" ± {row['seed_deviation_points']:.1f}"
        lines.append(
            _line(
                row_name(row).ljust(wide),
                f"{row['dim']:,}",
                accuracy,
                f"{low:.1f} to {high:.1f}",
                over,
            )
        )
    lines.append(
        "  gain: the first row over this one, paired on the test images, ± its 95 % half width"
    )
    if settings["seeds"] > 1:
        lines.append(
            f"  accuracy: mean of {settings['seeds']} seeds ± standard deviation between them; "
            "interval: over test images"
        )
    lines += [f"  {note}" for note in result["notes"]]
    unfinished = [row_name(row) for row in result["rows"] if not np.all(row.get("converged", True))]
    if unfinished:
        lines.append(f"  stopped at {settings['max_iter']} iterations: {', '.join(unfinished)}")
    return "\n".join(lines)


def _line(name: str, width: str, accuracy: str, interval: str, gain: str) -> str:
    return f"  {name} {width:>7} {accuracy:>12} {interval:>15} {gain:>14}".rstrip()
