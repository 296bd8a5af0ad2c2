"""efficiency.amp=fp16: the loss scale, and what overflows under it."""

from __future__ import annotations

import functools

import pytest
import torch

from clustermim_fast import train
from clustermim_fast.models.masked_autoencoder import MaskedAutoencoder
from clustermim_fast.train import precision
from tests.train.runs import QUIET, cut_after, rows, states_equal
from tests.train.test_nonfinite import InfiniteGradient

OVERFLOWS = 2.0**24  # float16 ends at 65504, and gradients of the tiny run are about 1


@pytest.fixture
def run_from(tiny, tmp_path, monkeypatch):
    """``run_from(scale, out)``: the whole run; with ``stop_at`` cut there, and gone on with."""

    def run(scale, out="run", stop_at=None, **options):
        scaler = functools.partial(torch.amp.GradScaler, init_scale=scale)
        monkeypatch.setattr(precision, "GradScaler", scaler)
        config = tiny(
            out=tmp_path / out,
            method="mae",
            efficiency__amp="fp16",
            optim__clip_grad=1.0,
            **options,
        )
        config = train.config_from_overrides(
            config, {"log.every_steps": 1, "log.checkpoint_every_steps": 1}
        )
        if stop_at is not None:
            with cut_after(stop_at):
                train.run(config, **QUIET)
        return train.run(config, **QUIET)

    return run


def test_what_overflows_is_left_out_and_counted(run_from):
    whole = run_from(OVERFLOWS)
    found = whole.metrics
    count = found["overflows"]
    assert whole.step == 10
    assert 0 < count < 10
    assert found["loss_scale"] == OVERFLOWS / 2**count
    assert "skipped_updates" not in found
    assert len(rows(whole.run_dir)) == 10  # their losses are finite
    state = torch.load(whole.run_dir / "checkpoints" / "last.pt", weights_only=True)
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {10 - count}

    resumed = run_from(OVERFLOWS, "cut", stop_at=2)
    assert states_equal(whole.run_dir, resumed.run_dir)
    assert rows(whole.run_dir) == rows(resumed.run_dir)


def test_a_loss_that_is_not_finite_leaves_the_scale(run_from, monkeypatch):
    forward, number = MaskedAutoencoder.forward, iter(range(10))
    monkeypatch.setattr(
        MaskedAutoencoder,
        "forward",
        lambda *a: forward(*a) * (torch.nan if next(number) == 3 else 1.0),
    )
    found = run_from(1024.0, optim__skip_nonfinite=1).metrics
    assert (found["skipped_updates"], found["overflows"]) == (1, 0)
    assert found["loss_scale"] == 1024


def test_gradients_that_no_scale_makes_finite_end_the_run(run_from, monkeypatch):
    forward = MaskedAutoencoder.forward
    monkeypatch.setattr(
        MaskedAutoencoder, "forward", lambda *a: InfiniteGradient.apply(forward(*a))
    )
    with pytest.raises(train.NonFiniteError, match=r"however small the loss scale .* at step 2;"):
        run_from(2.0)


@pytest.mark.parametrize(
    ("amp", "capability", "expected"),
    [
        ("auto", (8, 0), torch.bfloat16),
        ("auto", (7, 5), torch.float16),
        ("bf16", (7, 5), torch.bfloat16),
        ("off", (8, 0), None),
    ],
)
def test_the_type_is_the_devices(monkeypatch, amp, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.choose_dtype(amp, torch.device("cuda")) == expected
    assert precision.choose_dtype("auto", torch.device("cpu")) is None
