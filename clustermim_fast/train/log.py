"""What a run says about itself: sums kept on the device, one line per interval, metrics.jsonl."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from clustermim_fast.checkpoint import write_text_atomically
from clustermim_fast.ranks import everyone
from clustermim_fast.train.batches import Plan
from clustermim_fast.train.step import StepResult


class Window:
    """Sums over the updates since the last line, of this rank. Adding waits for no device."""

    def __init__(self, num_clusters: int | None, device: torch.device) -> None:
        self._num_clusters = num_clusters
        self._device = device
        self._ranks = everyone()
        self.clear()

    def clear(self) -> None:
        """Start a new interval."""
        self._loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self._correct = torch.zeros((), dtype=torch.float64, device=self._device)
        self._counted = torch.zeros((), dtype=torch.int64, device=self._device)
        self._predicted = torch.zeros(
            self._num_clusters or 0, dtype=torch.int64, device=self._device
        )
        # One place more than clusters: ids of -1 (patches with NaN) are counted there and left out.
        self._histogram = torch.zeros(
            (self._num_clusters or 0) + 1, dtype=torch.int64, device=self._device
        )
        self._parts: dict[str, torch.Tensor] = {}
        self._updates = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Throughput counts from now on."""
        self._timed_updates = 0
        self._started = time.perf_counter()
        self.waited = 0.0

    @property
    def empty(self) -> bool:
        return self._updates == 0

    def end_update(self, loss: torch.Tensor) -> None:
        """The update whose passes were added has this loss, of all ranks."""
        self._loss += loss
        self._updates += 1
        self._timed_updates += 1

    def add(self, result: StepResult) -> None:
        """Take in one forward pass."""
        for name, value in (result.parts or {}).items():
            self._parts[name] = self._parts.get(name, 0.0) + value.double() / self._ranks.count
        if result.metrics is not None:
            accuracy, histogram, counted = result.metrics
            self._correct += (accuracy.double() * counted).nan_to_num()  # nothing counted: nan
            self._counted += counted
            self._predicted += histogram
        if result.tokens is not None:
            ids = (result.tokens + 1).flatten()
            self._histogram.scatter_add_(0, ids, torch.ones_like(ids))

    def of_all(self) -> Window:
        """The same sums over all ranks, and the longest of their waits; itself where it is alone.

        One all_reduce, which every rank takes part in.
        """
        group = self._ranks
        if group.count == 1:
            return self
        whole = copy.copy(self)
        waits = torch.zeros(group.count, dtype=torch.float64, device=self._device)
        waits[group.rank] = self.waited
        sums = [self._correct, self._counted, self._predicted, self._histogram]
        names = sorted(self._parts)  # equal on all ranks, as their passes are
        mine = [*sums, *(self._parts[name] for name in names), waits]
        # Counts stay exact: they are below 2^53.
        total = group.total(torch.cat([value.double().reshape(-1) for value in mine]))
        parts = [
            part.reshape(value.shape).to(value.dtype)
            for part, value in zip(total.split([v.numel() for v in mine]), mine, strict=True)
        ]
        whole._correct, whole._counted, whole._predicted, whole._histogram = parts[:4]
        whole._parts = dict(zip(names, parts[4:-1], strict=True))
        whole.waited = float(parts[-1].max())
        return whole

    def state(self) -> dict[str, Any]:
        """For a checkpoint, so that a resumed run prints the same lines."""
        return {
            "loss": self._loss.cpu(),
            "correct": self._correct.cpu(),
            "counted": self._counted.cpu(),
            "predicted": self._predicted.cpu(),
            "histogram": self._histogram.cpu(),
            "parts": {name: value.cpu() for name, value in self._parts.items()},
            "updates": self._updates,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`: rank 0 goes on from what all ranks had, the others from nothing.

        An older version's sums are left out, its run goes on.
        """
        if state.keys() != self.state().keys():
            return
        self._loss = state["loss"].to(self._device)
        self._updates = int(state["updates"])
        none = torch.zeros((), dtype=torch.float64, device=self._device)
        self._parts = dict.fromkeys(state["parts"], none)
        if self._ranks.rank > 0:
            return
        self._correct = state["correct"].to(self._device)
        self._counted = state["counted"].to(self._device)
        self._predicted = state["predicted"].to(self._device)
        self._histogram = state["histogram"].to(self._device)
        self._parts = {name: value.to(self._device) for name, value in state["parts"].items()}

    def mean_loss(self) -> float:
        """Mean loss of the interval; waits for the device."""
        return float(self._loss) / max(1, self._updates)

    def metrics(self, batch_size: int) -> dict[str, Any]:
        """Numbers of the interval, of `batch_size` images an update; waits for the device."""
        values: dict[str, Any] = {"loss": self.mean_loss()}
        values |= {
            name: float(value) / max(1, self._updates) for name, value in self._parts.items()
        }
        if self._num_clusters is not None:
            tokens, predicted = _Usage(self._histogram[1:]), _Usage(self._predicted)
            values |= {
                "loss_floor_lnK": math.log(self._num_clusters),
                "masked_accuracy": float(self._correct) / max(1, int(self._counted)),
                "chance": 1 / self._num_clusters,
                "majority": tokens.majority,
                "token_entropy": tokens.entropy,
                "token_perplexity": math.exp(tokens.entropy),
                "tokens_used": tokens.used,
                # Far below the tokens' own: the model names only the commonest ones.
                "predicted_perplexity": math.exp(predicted.entropy),
                "predicted_used": predicted.used,
            }
        seconds = max(1e-9, time.perf_counter() - self._started)
        values["images_per_s"] = self._timed_updates * batch_size / seconds
        values["data_wait_pct"] = 100 * self.waited / seconds
        return values


class _Usage:
    """How evenly tokens are used, from their counts [K]."""

    def __init__(self, histogram: torch.Tensor) -> None:
        counts = histogram.double().cpu()
        share = counts / counts.sum().clamp_min(1)
        self.entropy = float(-(share * share.clamp_min(1e-300).log()).sum())  # nats
        self.majority = float(share.max())
        self.used = int((counts > 0).sum())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON objects, as metrics.jsonl; none where there is no file."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line a killed process was writing
        if isinstance(row, dict):
            rows.append(row)
    return rows


class MetricsFile:
    """metrics.jsonl: one JSON object per line of progress; cut back to the step a run resumes
    from.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        known = read_rows(path) if first_step > 0 else []
        kept = [row for row in known if row.get("step", 0) <= first_step]
        write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one line and hand it to the system."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def progress_line(row: dict[str, Any], plan: Plan, eta_s: float) -> str:
    """The line a person reads, from a row of metrics.jsonl; in the unit the run's length has."""
    parts = [
        f"step {row['step']:6d}/{plan.steps}"
        if plan.steps
        else f"epoch {row['epoch']:6.2f}/{plan.epochs}",
        f"eta {format_seconds(eta_s)}",
        f"lr {row['lr']:.2e}",
    ]
    terms = [name for name in row if name.endswith("_loss")]
    if terms:
        parts.append(f"loss {row['loss']:.4f}")
    if "loss_floor_lnK" in row:
        shown = "token_loss" if terms else "loss"
        parts += [
            f"{shown} {row[shown]:.4f} (ln K {row['loss_floor_lnK']:.3f})",
            f"accuracy {100 * row['masked_accuracy']:.1f} %",
            f"(chance {100 * row['chance']:.1f}, commonest token {100 * row['majority']:.1f})",
            f"perplexity {row['token_perplexity']:.1f}",
            f"(of predictions {row['predicted_perplexity']:.1f})",
        ]
    elif not terms:
        parts.append(f"loss {row['loss']:.4f}")
    parts += [f"{name} {row[name]:.4f}" for name in terms if name != "token_loss"]
    speed = row["images_per_s"]
    parts.append(f"{speed:.{0 if speed >= 10 else 1}f} images/s")
    parts.append(f"data wait {row['data_wait_pct']:.0f} %")
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
