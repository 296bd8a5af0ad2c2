"""How a run is cut, and how two runs are compared."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch

from clustermim_fast.train import loop

QUIET = {"say": lambda line: None}


class Cut(Exception):
    """A run was ended."""


@contextlib.contextmanager
def cut_after(step):
    """The run inside ends, as one that is killed, when the checkpoint of ``step`` is written."""
    real = loop.save_state

    def save_then_die(state, *rest):
        path = real(state, *rest)
        if state.step == step:
            raise Cut
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", save_then_die)
        with pytest.raises(Cut):
            yield


def states_equal(first, second):
    a = torch.load(first / "checkpoints" / "last.pt", weights_only=True)
    b = torch.load(second / "checkpoints" / "last.pt", weights_only=True)

    def same(x, y):
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
        if isinstance(x, (list, tuple)):
            return len(x) == len(y) and all(map(same, x, y))
        return x == y

    return all(
        same(a[key], b[key]) for key in ("model", "ema", "optimizer", "scaler", "step", "window")
    )


def rows(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    timing = ("images_per_s", "data_wait_pct")
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]
