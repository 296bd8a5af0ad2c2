"""A batch whose loss is not finite: named, left out where that is asked for, never learned from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clustermim_fast import train
from clustermim_fast.models.masked_autoencoder import MaskedAutoencoder
from clustermim_fast.train.diagnose import where_not_finite
from clustermim_fast.train.update import Update
from tests.train.runs import QUIET, rows

BAD = 7  # the sample that breaks the encoder, once in each of two epochs


@pytest.fixture
def poisoned(monkeypatch):
    place = []
    take, encode = Update._take, MaskedAutoencoder.encode

    def noting(self, *arguments):
        inputs = take(self, *arguments)
        place[:] = (inputs.samples == BAD).nonzero().flatten().tolist()
        return inputs

    def breaking(self, images, visible):
        features = encode(self, images, visible).clone()
        features[place] = torch.nan
        return features

    monkeypatch.setattr(Update, "_take", noting)
    monkeypatch.setattr(MaskedAutoencoder, "encode", breaking)


@pytest.mark.parametrize("skip", [0, 1])
def test_the_run_ends_with_the_samples_and_the_module(tiny, poisoned, skip):
    config = tiny(optim__skip_nonfinite=skip, log__checkpoint_every_steps=1)
    wanted = rf"output of decoder_embed is not finite first, of samples \[{BAD}\]"
    with pytest.raises(train.NonFiniteError, match=wanted):
        train.run(config, **QUIET)
    kept = train.load_run(config.out)
    assert (kept.step > 5) == (skip == 1)  # the second epoch
    assert all(p.isfinite().all() for p in kept.model.parameters())


def test_updates_are_left_out_and_counted(tiny, poisoned):
    config = tiny(optim__skip_nonfinite=2, log__every_steps=1, method="mae")
    result = train.run(config, **QUIET)
    assert result.step == 10
    assert result.metrics["skipped_updates"] == 2
    assert len(rows(result.run_dir)) == 8  # an update that was left out has no loss
    assert all(p.isfinite().all() for p in train.load_run(result.run_dir).model.parameters())


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[1] = torch.inf
        return grad


class Net(nn.Module):
    def __init__(self, breaks):
        super().__init__()
        self.first, self.second, self.breaks = nn.Linear(3, 4), nn.Linear(4, 2), breaks

    def forward(self, x):
        hidden = self.first(x)
        hidden = InfiniteGradient.apply(hidden) if self.breaks == "gradient" else hidden
        loss = self.second(hidden).square().mean()
        return type("Result", (), {"loss": loss * torch.inf if self.breaks == "loss" else loss})


@pytest.mark.parametrize(
    ("breaks", "expected"),
    [
        ("", ""),
        (
            "gradient",
            "the gradient at the output of first is not finite first, of samples [11]",
        ),
        ("loss", "the loss is not finite first, of samples [10, 11, 12]"),
        ("weight", "the weight second.bias is not finite"),
    ],
)
def test_where_not_finite(breaks, expected):
    net = Net(breaks)
    if breaks == "weight":
        net.second.bias.data[0] = torch.nan
    found = where_not_finite(net, (torch.ones(3, 3),), torch.tensor([10, 11, 12]))
    assert found == expected
    assert all(p.grad is None for p in net.parameters())
