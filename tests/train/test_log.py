"""What a line of progress says of the passes it covers."""

from __future__ import annotations

import math

import pytest
import torch

from clustermim_fast.ops import Metrics
from clustermim_fast.train.batches import Plan
from clustermim_fast.train.config import TrainConfig
from clustermim_fast.train.log import Window
from clustermim_fast.train.progress import Progress
from clustermim_fast.train.step import StepResult


def test_accuracy_is_over_counted_tokens_and_usage_over_predictions() -> None:
    window = Window(4, torch.device("cpu"))
    nothing = Metrics(torch.tensor(math.nan), torch.zeros(4, dtype=torch.int64), torch.tensor(0))
    passes = [
        Metrics(torch.tensor(0.5), torch.tensor([2, 0, 0, 0]), torch.tensor(2)),
        Metrics(torch.tensor(1.0), torch.tensor([0, 6, 0, 0]), torch.tensor(6)),
        nothing,
    ]
    tokens = torch.tensor([[0, 1, 2, 3, -1]])
    for metrics in passes:
        window.add(StepResult(torch.tensor(1.0), metrics, tokens))
        window.end_update(torch.tensor(1.0))

    restored = Window(4, torch.device("cpu"))
    restored.load_state(window.state())
    for found in (window.metrics(1), restored.metrics(1)):
        assert found["masked_accuracy"] == pytest.approx(7 / 8)
        assert found["predicted_used"] == 2
        entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
        assert found["predicted_perplexity"] == pytest.approx(math.exp(entropy))
        assert found["tokens_used"] == 4
        assert found["token_perplexity"] == pytest.approx(4)


def test_the_sums_of_an_older_version_are_left_out() -> None:
    window = Window(4, torch.device("cpu"))
    window.load_state({"loss": torch.tensor(3.0), "accuracy": torch.tensor(0.5), "passes": 7})
    assert window.empty
    assert window.mean_loss() == 0.0


def test_advice_is_given_once_and_not_for_the_first_line(tmp_path):
    said = []
    config = TrainConfig(out=str(tmp_path))
    progress = Progress(config, Plan(8, 4, 1, 9, 0), 0, said.append, "read less")
    row = {"step": 1, "epoch": 0.5, "lr": 1.0, "loss": 2.0, "images_per_s": 9.0}
    for wait in (50.0, 9.9, 10.1, 80.0):
        progress.write({**row, "data_wait_pct": wait})
    progress.close()
    assert [line for line in said if "read less" in line] == [
        "the network waits for images 10 % of the time: read less"
    ]
    assert "data wait 50 %" in said[0]
